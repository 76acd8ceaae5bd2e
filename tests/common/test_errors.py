"""Error messages: one printable line, with a remedy for an unknown name."""

import pytest

from cnn.errors import NetworkError, UnknownNameError
from jobs.errors import JobError
from logpose.common.errors import LogposeError, printable, suggest
from pipeline.errors import PipelineError


@pytest.mark.parametrize("kind", [PipelineError, NetworkError, JobError])
def test_every_error_is_a_logpose_error_of_one_line(kind: type[LogposeError]) -> None:
    assert issubclass(kind, LogposeError) and kind.exit_code == 2
    assert str(kind("a\nb\x1b[1m")) == "a\\x0ab\\x1b[1m"


def test_printable_keeps_text_and_escapes_the_rest() -> None:
    assert printable("Käse ラフテル") == "Käse ラフテル"
    assert printable("caf\udce9\u2028") == "caf\\udce9\\u2028"


def test_suggest_names_the_nearest_choice_or_all() -> None:
    assert suggest("ResNet8", ["resnet9", "plain"]) == "did you mean 'resnet9'?"
    assert suggest("xyz", ["resnet9", "plain"]) == "choose one of: plain, resnet9"
    assert "did you mean 'plain'?" in str(UnknownNameError("model", "plan", ["plain", "seed"]))
