"""An error is one line that can be read, however long the names that it echoes."""
import pytest

from htd_jax import cli
from htd_jax.data import classes, images
from htd_jax.errors import UserError, shortened

LONG = "start" + "x" * 10_000 + "end"


def label_map(name=LONG):
    classes.label_map([(1, name)], [(1, "cat")], "the annotations", "the run")


@pytest.mark.parametrize("fail, words", [
    (label_map, "is not among the 1 of the run"),
    (lambda: label_map(LONG.replace("xxx", "x'\"\n x x")), "is not among the 1 of the run"),
    (lambda: images.read_bytes(f"/{LONG}", "image"), "cannot be read"),
    (lambda: cli._check_override_names([f"--config.{LONG}=1"]), "there is no such key"),
    (lambda: cli._check_override_names([f"--config.sead={LONG}"]), "did you mean config.seed?")])
def test_a_long_name_is_shortened_in_its_middle(fail, words, capsys):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as error:
        fail()
    assert cli.fail(error.value) == 2
    line = capsys.readouterr().err
    assert "startx" in line and "..." in line and "xend" in line and len(line) < 600


def test_a_long_message_keeps_its_beginning_and_its_remedy():
    message = f"the classes {'a b ' * 10_000}differ: rename them"
    assert len(shortened(message)) < 3100
    assert shortened(message).startswith("the classes a b") and shortened(message).endswith("differ: rename them")


def test_what_is_short_stays_as_it_is():
    message = f"image file /{'a' * 90}/{'b' * 90}.jpg does not exist: the run's " + "word " * 500 + "of PyTorch's"
    assert shortened(message) == message
