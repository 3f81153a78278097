"""What libraries say on every good run is left out; their warnings stay."""

import logging

import pytest

from unified.hardware.quiet import NO_NEWS, quiet_libraries


@pytest.mark.parametrize(("name", "said"), NO_NEWS.items())
def test_what_is_no_news_is_left_out_and_the_rest_stays(
    name: str, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "propagate", True)
    quiet_libraries()
    for text in (f"{said} from here", "something is wrong"):
        logger.warning(text)
    assert [record.getMessage() for record in caplog.records] == ["something is wrong"]
