"""A browser for the tests that look at pages."""

import os
import shutil
from collections.abc import Iterator

import browser
import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[browser.Browser]:
    """A headless Chromium; must be there in CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Chromium: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")
    with browser.start(program) as page:
        yield page
