"""What gradio keeps of pages that were opened: their states and all that they show, for a bounded time."""

from datetime import datetime

import gradio as gr
from gradio.state_holder import StateHolder

CLOSED_SECONDS = 600.0  # a phone that sleeps comes back as the page that it was
OPEN_SECONDS = 7200.0  # as long as uploaded files are kept
MOST = 1000  # pages


class Sessions(StateHolder):
    """Pages by their session. gradio itself would keep the pictures of the last 10,000, closed or not."""

    def delete_all_expired_state(self) -> None:
        """Forget pages that were closed, and those that were left alone; gradio asks for it every second."""
        now = datetime.now()
        for name, session in list(self.session_data.items()):
            seconds = (now - self.time_last_used[name]).total_seconds()
            if seconds > (CLOSED_SECONDS if session.is_closed else OPEN_SECONDS):
                self.forget(name)

    def forget(self, name: str) -> None:
        """Drop a page with all that is kept of it."""
        session = self.session_data.pop(name)
        del self.time_last_used[name]
        for number, value in session.state_data.items():
            state = session.blocks_config.blocks.get(number)
            if isinstance(state, gr.State):
                state.delete_callback(value)

    @classmethod
    def of(cls, blocks: gr.Blocks) -> "Sessions":
        """Those of a page that is mounted."""
        blocks.state_session_capacity = MOST
        sessions = cls()
        sessions.set_blocks(blocks)
        return sessions
