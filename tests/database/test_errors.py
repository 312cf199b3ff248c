"""Every error's message, whatever its fields hold."""

from __future__ import annotations

import pickle
import string
from inspect import cleandoc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callipper_db import errors
from callipper_db.errors import CallipperError

GROUPS = CallipperError.__subclasses__()
LEAVES = [leaf for group in GROUPS for leaf in group.__subclasses__()]
HOSTILE = st.text(st.sampled_from("{}%s!r:.[]0 \n\r\t\0\x1b\x7f\u2028\udcffcafé'\"\\"), max_size=30)


def field_names(kind: type[CallipperError]) -> list[str]:
    names = {name for _, name, _, _ in string.Formatter().parse(cleandoc(kind.__doc__ or "")) if name}
    return sorted(names)


def test_the_tree_has_groups_and_leaves_and_nothing_below() -> None:
    assert len(GROUPS) == 6
    assert not [leaf for leaf in LEAVES if leaf.__subclasses__()]
    found = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CallipperError)}
    assert found == {CallipperError, *GROUPS, *LEAVES}


@pytest.mark.parametrize("kind", LEAVES)
def test_a_class_is_a_sentence(kind: type[CallipperError]) -> None:
    words = [literal for literal, _, _, _ in string.Formatter().parse(cleandoc(kind.__doc__ or ""))]
    assert len("".join(words).split()) >= 1 and not (kind.__doc__ or "").startswith("{reason}")


@pytest.mark.parametrize("kind", LEAVES)
@given(st.data())
def test_fields_are_never_taken_for_a_template(kind: type[CallipperError], data: st.DataObject) -> None:
    fields = {name: data.draw(HOSTILE, label=name) for name in field_names(kind)}
    error = kind(**fields)
    message = str(error)
    assert message.isprintable(), "one line, and nothing that moves a cursor"
    for name, value in fields.items():
        if "{" + name + "}" in cleandoc(kind.__doc__ or ""):
            words = " ".join(value.split())
            assert "".join(a if a.isprintable() else ascii(a)[1:-1] for a in words) in message
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.fields) == (kind, message, fields)


@pytest.mark.parametrize("text", ["{cafe}", "100 %", "{0.__class__}", "%(x)s", "{"])
def test_a_users_text_stays_as_it_is(text: str) -> None:
    assert text in str(errors.TextUnknown(reason=f"'{text}' is unknown"))
