"""What libraries say on every good run is left out; their warnings stay."""

import io
import logging

import pytest

from unified.hardware.quiet import NO_NEWS, quiet_libraries


@pytest.mark.parametrize(("name", "said"), NO_NEWS.items())
def test_what_is_no_news_is_left_out_and_the_rest_stays(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, heard = logging.getLogger(name), io.StringIO()
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(heard)])
    monkeypatch.setattr(logger, "propagate", False)
    quiet_libraries()
    for text in (f"{said} from here", "something is wrong"):
        logger.warning(text)
    assert heard.getvalue() == "something is wrong\n"
