"""Scores of any model: GenEval, detectors, FID, preference scorers, plug-ins of evaluation harnesses.

metrics             pure functions: GenEval's rules, POPE, PSNR, Frechet distance
geneval_files       GenEval's prompt sets and image folders
geneval             GenEval's score of a folder
image_folder        prompts -> a folder of generated images
detections          what every detector answers; loading one
detector            a small detector of classes, colours and boxes
coco_detector       GenEval's own: Mask2Former and CLIP
preference_scorers  which answer is better
inception           the network of FID
diversity           how varied images are
power_law           where a learning curve goes
lm_eval_plugin      lm-eval of checkpoints and adapters
lmms_plugin         the plug-in for lmms-eval
"""

__all__ = [
    "coco_detector",
    "detections",
    "detector",
    "diversity",
    "geneval",
    "geneval_files",
    "image_folder",
    "inception",
    "lm_eval_plugin",
    "lmms_plugin",
    "metrics",
    "power_law",
    "preference_scorers",
]
