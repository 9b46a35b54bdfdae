"""What a test needs beyond the package itself."""

import importlib
import os
import shutil
from importlib.metadata import PackageNotFoundError, version

import pytest


def verl() -> None:
    """Skip the file or the test where verl is not installed, unless this is CI.

    Where it is installed, it must be the version that all is compared with, and import: or the proof would be skipped.
    """
    try:
        installed = version("verl")
    except PackageNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("needs verl", allow_module_level=True)
    assert installed.startswith("0.9."), f"verl {installed} is installed, the tests compare with 0.9"
    importlib.import_module("verl.trainer.ppo.core_algos")


def browser() -> str:
    """The Chromium of this machine; the test is skipped where there is none, unless this is CI, which installs it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and not os.environ.get("CI"):
        pytest.skip("needs Chromium")
    assert found, "CI has no Chromium"
    return found
