"""Names of the files in which a run says what it was, in its folder and in its checkpoints."""

TRAINER_STATE = "trainer_state.json"  # HF's, written last into a checkpoint
RUN = "run.json"  # settings, rows, base and launch
ORIGIN = "origin.json"  # the same, in folders that were made of that one
HARDWARE = "hardware.json"  # device, precision, threads
PROGRESS = "progress.json"  # how far it has come
LOCK = "running.json"  # who trains into the folder
RECORDS = (TRAINER_STATE, RUN, ORIGIN, HARDWARE, PROGRESS, LOCK)
