"""Pages for people: results, models, demos, as self-contained HTML; and long jobs made of steps.

page             the page of a model, before and after a fine-tuning where there was one
results_page     result JSONs -> one page
endings          what a command says when it has ended well
steps            a long job in one process: named steps, done once
commands         a long job made of commands
demo             a demo: its folder, its steps, the model that is shown
demo_arguments   what recipes/demo.py can be told
demo_data        what it is fine-tuned on
demo_scores      what it measures
demo_page        its page and its result
demo_transcript  what a model says and draws, kept on disk
"""

__all__ = [
    "commands",
    "demo",
    "demo_arguments",
    "demo_data",
    "demo_page",
    "demo_scores",
    "demo_transcript",
    "endings",
    "page",
    "results_page",
    "steps",
]
