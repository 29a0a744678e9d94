"""One server and one browser for all tests here; every test runs in both of the editor's renderers."""

import pytest

from tests.web.editor import Editor, chromium, demo, start_server, why_not

WHY_NOT = why_not()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    server = start_server(tmp_path_factory.mktemp("comfyui"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def page(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        yield Editor(browser, server)
        browser.close()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def renderer(page, request):
    page.renderer(request.param)
    return page


@pytest.fixture
def editor(renderer):
    """The nano demo, loaded; afterwards the page must not have complained."""
    renderer.js("HET.events.length = 0")
    renderer.load(demo())
    renderer.errors()
    yield renderer
    renderer.finished()
    assert renderer.errors() == []
