"""The proof domain: GenEval's tasks rendered from OpenMoji with exact labels, its questions and its classifiers.

glyphs              OpenMoji characters as small images
rendering           scenes: sampled and rendered
tidy_layout         objects always in the same places
dataset             scenes as rows to train on
new_objects         objects that Scenes has not, for fine-tuning
object_folder       images of them with captions, as people bring their own
texts               captions and questions about scenes
answer_parsing      what an answer or a caption says
understanding       the understanding benchmark: question types and their scores
prompts             prompts in GenEval's form
nearest_object      a nearest-neighbour classifier of objects
nearest_object_score  its score of a folder of images
detector_arguments  arguments of recipes/train_detector.py
detector_data       training data of the detector
detector_ceilings   ceilings and false-positive rates of its scores
"""

__all__ = [
    "answer_parsing",
    "dataset",
    "detector_arguments",
    "detector_ceilings",
    "detector_data",
    "glyphs",
    "nearest_object",
    "nearest_object_score",
    "new_objects",
    "object_folder",
    "prompts",
    "rendering",
    "texts",
    "tidy_layout",
    "understanding",
]
