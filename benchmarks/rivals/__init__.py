"""What HetCache is compared with: other ways to spend less time on the same edit."""
