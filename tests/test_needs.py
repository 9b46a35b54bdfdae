"""Whether the comparison with verl, or the real browser, can be left out unnoticed."""

import importlib
import shutil
from importlib import metadata

import needs
import pytest

Skipped = pytest.skip.Exception


def found(monkeypatch: pytest.MonkeyPatch, version: str | None, broken: bool = False) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    def imported(name: str) -> object:
        if broken:
            raise ModuleNotFoundError("No module named 'tensordict'")
        return None

    monkeypatch.setattr(needs, "version", installed)
    monkeypatch.setattr(importlib, "import_module", imported)
    needs.verl()


def test_verl_is_left_out_only_where_it_is_not_installed_and_nothing_is_to_be_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    found(monkeypatch, "0.9.1")
    with pytest.raises(Skipped):
        found(monkeypatch, None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(metadata.PackageNotFoundError):
        found(monkeypatch, None)


def test_verl_that_is_broken_or_another_version_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(ModuleNotFoundError):
        found(monkeypatch, "0.9.1", broken=True)
    with pytest.raises(AssertionError, match=r"verl 0\.10\.0 is installed"):
        found(monkeypatch, "0.10.0")


def test_the_browser_is_left_out_only_where_nothing_is_to_be_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"chromium-browser": "/bin/browser"}.get)
    assert needs.browser() == "/bin/browser"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(Skipped):
        needs.browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="Chromium"):
        needs.browser()
