"""The demo: one masked edit of a real clip, in full and cached, side by side. Run it with `python -m demo`."""
