"""Settings of the coordinator as people write them: a name that is none is told of, and a value that somebody else wrote is explained."""

import pytest
import typer

from fedcybgd.coordinator.commands.given import SettingsInvalid, settings_of, without_effect
from fedcybgd.coordinator.settings import Settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FEDCOORD_DATABSE_URL", "FEDCOORD_DATABASE_URL"),
        ("FEDCOORD_PROXY", "FEDCOORD_PROXIES"),
        ("FEDCOORD_TLS_CERT", "FEDCOORD_TLS_CERTIFICATE"),
        ("fedcoord_lane", "FEDCOORD_LANES"),
    ],
)
def test_a_setting_that_is_misspelt_is_told_with_the_one_that_was_meant(name: str, meant: str) -> None:
    assert without_effect([name]) == [f"{name} is no setting, and has no effect; {meant} is one"]


def test_what_is_far_from_every_setting_is_told_alone() -> None:
    assert without_effect(["FEDCOORD_\x1b[31mQ", "FEDCOORD_UPSTREAMS"])[1] == "FEDCOORD_UPSTREAMS is no setting, and has no effect"
    assert "\x1b" not in without_effect(["FEDCOORD_\x1b[31mQ"])[0]


def test_settings_and_what_others_are_told_by_the_prefix_are_not_told_of() -> None:
    settings = [f"FEDCOORD_{name.upper()}" for name in Settings.model_fields]
    of_others = [
        "FEDCOORD_URL",
        "FEDCOORD_OPERATOR_KEY",
        "FEDCOORD_SERVICE_HOST",
        "FEDCOORD_SERVICE_PORT_HTTP",
        "FEDCOORD_PORT_8440_TCP_ADDR",
    ]
    assert without_effect([*settings, *of_others, "fedcoord_home", "PATH", "FEDAGENT_HOME"]) == []


def test_a_port_that_kubernetes_wrote_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOORD_PORT", "tcp://10.0.0.7:8440")
    with pytest.raises(SettingsInvalid, match=r"FEDCOORD_PORT: .*; Kubernetes sets it where a Service is called fedcoord"):
        settings_of()
    monkeypatch.setenv("FEDCOORD_PORT", "http")
    with pytest.raises(SettingsInvalid) as said:
        settings_of()
    assert "Kubernetes" not in said.value.message


@pytest.mark.parametrize(("name", "value", "option"), [("port", 99999, "--port"), ("lanes", "fast", "--lanes")])
def test_a_wrong_option_is_called_as_it_was_typed_and_a_wrong_variable_in_one_line(
    name: str, value: object, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(typer.BadParameter) as of_option:
        settings_of(**{name: value})
    assert f"'{option}'" == of_option.value.param_hint
    monkeypatch.setenv(f"FEDCOORD_{name.upper()}", str(value))
    with pytest.raises(SettingsInvalid) as of_variable:
        settings_of()
    assert of_variable.value.message == f"FEDCOORD_{name.upper()}: {of_option.value.message}"
