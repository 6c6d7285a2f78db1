"""Sharing: one value or its attributes as keywords make the same layer or network; what is refused, at every door."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import get_type_hints

import pytest
import torch
from refusals import assert_refused
from torch import nn

import bayesws as bws
from bayesws.layers import Sharing, WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d, WSLinear, sharing_plan
from bayesws.layers.sharing_settings import PATHWAYS, SharingKeywords, StackKeywords
from bayesws.models import WSCNN, WSResNet
from bayesws.sharing import known_group

HALF_TURN = known_group("half-turns", 2, 2)


def plain():
    return nn.Sequential(nn.Conv2d(1, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(8, 8))


DOORS = {
    "WSLinear": lambda **k: WSLinear(4, 2, **k),
    "WSLiftConv2d": lambda **k: WSLiftConv2d(2, 3, 2, **k),
    "WSConv2d": lambda **k: WSConv2d(2, 3, 2, **k),
    "WSLiftConv3d": lambda **k: WSLiftConv3d(2, 3, 2, **k),
    "WSConv3d": lambda **k: WSConv3d(2, 3, 2, **k),
    "WSCNN": lambda **k: WSCNN(hidden_channels=2, kernel_size=2, **k),
    "WSResNet": lambda **k: WSResNet(hidden_channels=2, kernel_size=2, widths=(1,), **k),
    "share": lambda **k: bws.share(plain(), **k),
}
NETWORKS = {"WSCNN", "WSResNet"}
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
KEYWORDS = [
    {"group_size": 2, "stack": "dense"},
    {"group_size": 2, "stack": "product", "constraint": "rows"},
    {"group_size": 2, "stack": "power", "pathways": PATHWAYS},
    {"group_size": 1, "stack": "fixed", "group": "trivial"},
    {"group_size": 1, "stack": "fixed", "pathways": ("free",)},
    {"group_size": 2, "stack": "fixed", "group": HALF_TURN},
]
CASES = [
    pytest.param(door, keywords, id=f"{name}-{'-'.join(map(str, keywords.values()))}")
    for name, door in DOORS.items()
    for keywords in KEYWORDS
    if not ("3d" in name and keywords.get("group") is HALF_TURN)
]


def made(door, **arguments):
    torch.manual_seed(0)
    return door(**arguments)


def assert_same_network(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert repr(one) == repr(other)
    assert getattr(one, "settings", None) == getattr(other, "settings", None)


@pytest.mark.parametrize("door, keywords", CASES)
def test_a_value_and_its_keywords_make_the_same_network(door, keywords):
    assert_same_network(made(door, sharing=Sharing(**keywords)), made(door, **keywords))


@pytest.mark.parametrize("name, door", DOORS.items(), ids=DOORS)
def test_what_is_left_out_is_the_dense_stack_of_layers_and_the_fixed_one_of_networks(name, door):
    default = Sharing(stack="fixed") if name in NETWORKS else Sharing()
    assert default == Sharing(4, "fixed" if name in NETWORKS else "dense", None, ("shared", "free"), "doubly")
    assert_same_network(made(door), made(door, sharing=default))
    nothing = dict.fromkeys(default.as_keywords())
    assert_same_network(made(door), made(door, sharing=None, **nothing))


@pytest.mark.parametrize("network", [WSCNN, WSResNet])
def test_settings_of_a_network_are_flat(network):
    sharing = Sharing(2, "fixed", HALF_TURN, ("shared",))
    net = network(2, 3, 2, kernel_size=2, sharing=sharing)
    assert sharing.as_keywords().items() <= net.settings.items() and "sharing" not in net.settings
    assert net.settings == network(2, 3, 2, 2, 2, stack="fixed", group=HALF_TURN, pathways=("shared",)).settings


def test_a_group_for_every_layer_in_a_value():
    groups = ("flips", "trivial", known_group("half-turns", 3, 3))
    one = made(WSCNN, layers=3, sharing=Sharing(8, "fixed", groups, ("shared",)))
    other = made(WSCNN, layers=3, group_size=8, group=list(groups), pathways=("shared",))
    assert_same_network(one, other)
    assert [layer.group_size for layer in one.convolutions()] == [2, 1, 2]
    assert one.settings["group"] == groups and one.settings["group_size"] == 8


def test_published_sizes_with_another_sharing():
    changes = {"hidden_channels": 1, "layers": 2, "kernel_size": 2}
    value = Sharing(8, "fixed", pathways=("free",))
    by_keywords = made(WSCNN.published, group_size=8, stack="fixed", pathways=("free",), **changes)
    assert_same_network(made(WSCNN.published, sharing=value, **changes), by_keywords)


@pytest.mark.parametrize("stack", ["dense", "fixed"])
def test_a_fit_is_saved_and_loaded_whichever_door_its_network_came_through(stack, tmp_path):
    data = torch.randn(6, 1, 5, 5), torch.arange(6) % 2
    sharing = Sharing(2, stack, "flips" if stack == "fixed" else None, ("shared",))
    net = WSCNN(1, 2, 1, sharing=sharing, layers=1)
    bws.fit(net, data, epochs=2, progress=False).save(tmp_path / "fit")
    again = bws.FitResult.load(tmp_path / "fit").model
    assert again.settings == net.settings and again.convolutions()[0].pathway_names == ("shared",)


# The value


def test_equal_values_are_one():
    value = Sharing(4, "fixed", ["flips", "trivial"], ("free", "shared"))
    assert value == Sharing(4, "fixed", ("flips", "trivial")) and hash(value) == hash(replace(value))
    assert Sharing(2, "fixed", HALF_TURN) == Sharing(2, "fixed", known_group("half-turns", 2, 2))
    assert Sharing(**value.as_keywords()) == value
    with pytest.raises(FrozenInstanceError):
        value.stack = "dense"


def test_repr_is_one_line_that_makes_the_value():
    value = Sharing(8, "fixed", "dihedral", ("shared",))
    assert eval(repr(value)) == value
    assert "\n" not in repr(Sharing(2, "fixed", HALF_TURN)) and "half-turns" in repr(Sharing(2, "fixed", HALF_TURN))


def test_keywords_are_typed_as_the_attributes_are():
    """What a study's JSON is checked by, and mypy a call."""
    assert get_type_hints(SharingKeywords) == get_type_hints(Sharing)
    assert set(get_type_hints(StackKeywords)) == {f.name for f in fields(Sharing)} - {"group_size"}


# What is refused

BAD_VALUES = [
    ({"group_size": 0}, "group_size=0: expected at least 1"),
    ({"stack": "soft"}, "stack 'soft': expected one of fixed, dense, product, power"),
    ({"pathways": ()}, r"pathways=\(\): expected 'shared', 'free' or both"),
    ({"pathways": "shared"}, "pathways='shared': expected 'shared', 'free' or both, in a tuple"),
    ({"pathways": ("shared", "loose")}, "'loose'.*expected 'shared', 'free' or both"),
    ({"pathways": ("free", "free")}, "expected 'shared', 'free' or both"),
    ({"stack": "power", "pathways": ("free",)}, "stack='power' without the shared pathway.*use stack='fixed'"),
    ({"stack": "dense", "constraint": "row"}, "constraint='row': expected one of doubly, rows, none"),
    ({"stack": "fixed", "constraint": "rows"}, "constraint='rows' with stack='fixed'"),
    ({"stack": "fixed", "group_size": 3}, "group_size=3: several groups have that size; name one with group="),
    ({"stack": "dense", "group": "flips"}, "group='flips' with stack='dense': a known group needs stack='fixed'"),
    ({"stack": "dense", "group": ("flips", "flips")}, "'flips'.* with stack='dense'"),
    ({"stack": "fixed", "group": 4}, "group=4: expected a name, a Group, or one of these for every layer"),
]
every_bad_value = pytest.mark.parametrize("keywords, message", BAD_VALUES, ids=[str(k) for k, _ in BAD_VALUES])


@every_bad_value
def test_no_value_may_be(keywords, message, without_type_checks):
    assert_refused(lambda: Sharing(**keywords), message)


@every_bad_value
@every_door
def test_the_same_is_said_at_every_door(door, keywords, message, without_type_checks):
    assert_refused(lambda: door(**keywords), message)


BAD_CALLS = [
    ({"groupsize": 2}, "^unknown argument 'groupsize': expected one of .*group_size, stack, group, pathways, const"),
    ({"sharing": Sharing(2), "group_size": 2}, "^group_size beside sharing: expected one or the other"),
    ({"sharing": Sharing(2), "stack": "dense", "pathways": ("shared",)}, "stack, pathways beside sharing"),
    ({"sharing": 4}, "^sharing=4: expected a Sharing, or keywords such as group_size=4"),
    ({"sharing": {"group_size": 2}}, "^sharing={'group_size': 2}: expected a Sharing"),
]


@pytest.mark.parametrize("arguments, message", BAD_CALLS, ids=[str(a) for a, _ in BAD_CALLS])
@pytest.mark.parametrize("door", [*DOORS.values(), lambda **k: sharing_plan(plain(), **k)], ids=[*DOORS, "plan"])
def test_unknown_keywords_and_a_value_beside_keywords(door, arguments, message, without_type_checks):
    assert_refused(lambda: door(**arguments), message)


@pytest.mark.parametrize("name", [n for n in DOORS if n != "WSCNN"])
def test_only_one_network_takes_a_group_for_every_layer(name):
    groups = ("trivial", "trivial")
    assert_refused(
        lambda: DOORS[name](stack="fixed", group=groups), r"group=\('trivial', 'trivial'\): expected one for"
    )
