"""Which interfaces a list of names and patterns asks for."""

import pytest

from collector.kernel.interface import Interface
from collector.kernel.patterns import asked, is_pattern, waiting

NAMES = ["eth0", "veth1", "veth22", "wg0", "VETH9"]


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        ([("eth0", "both")], {"eth0": "both"}),
        ([("veth*", "ingress")], {"veth1": "ingress", "veth22": "ingress"}),  # and not VETH9
        ([("veth?", "both")], {"veth1": "both"}),
        ([("[ew]*0", "both")], {"eth0": "both", "wg0": "both"}),
        ([("veth*", "both"), ("veth1", "ingress")], {"veth1": "ingress", "veth22": "both"}),
        ([("veth1", "ingress"), ("*", "egress")], {n: "ingress" if n == "veth1" else "egress" for n in NAMES}),
        ([("eth0", "ingress"), ("eth0", "egress")], {"eth0": "both"}),
        ([("veth*", "ingress"), ("*1", "egress")], {"veth1": "both", "veth22": "ingress"}),
        ([("tun*", "both"), ("ppp0", "both")], {}),
    ],
)
def test_names_go_before_patterns_and_hooks_add_up(interfaces: list[tuple[str, str]], expected: dict[str, str]) -> None:
    found = asked([Interface(*i) for i in interfaces], NAMES)
    assert found == {name: Interface(name, hooks) for name, hooks in expected.items()}


def test_patterns_wait_and_names_do_not() -> None:
    interfaces = [Interface(name) for name in ("veth*", "tun*", "ppp0", "tun*", "eth0")]
    assert waiting(interfaces, NAMES) == ["tun*"]
    assert [i.name for i in interfaces if is_pattern(i.name)] == ["veth*", "tun*", "tun*"]
