"""The proof domain: GenEval's tasks rendered from OpenMoji with exact labels, its questions and its judges.

glyphs              OpenMoji characters as small images
rendering           scenes: sampled and drawn
tidy_layout         objects always in the same places
new_objects         objects that Scenes has not, for fine-tuning
texts               captions and questions about scenes
answer_parsing      what an answer or a caption says
understanding       the understanding benchmark: question types and their scores
prompts             prompts in GenEval's form
nearest_object      a judge by the nearest known image
detector_arguments  what recipes/train_detector.py can be told
detector_data       what the detector learns from
detector_ceilings   what its scores are worth
"""

__all__ = [
    "answer_parsing",
    "detector_arguments",
    "detector_ceilings",
    "detector_data",
    "glyphs",
    "nearest_object",
    "new_objects",
    "prompts",
    "rendering",
    "texts",
    "tidy_layout",
    "understanding",
]
