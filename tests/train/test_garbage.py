"""What exists before a run is left out of garbage collection."""

import contextlib
import gc

from src.train.garbage import frozen_objects


def test_objects_are_frozen_and_given_back_also_after_an_error():
    before = gc.get_freeze_count()
    gc.unfreeze()
    counts = []
    with contextlib.suppress(KeyError), frozen_objects():
        counts.append(gc.get_freeze_count())
        with frozen_objects():
            counts.append(gc.get_freeze_count())
        counts.append(gc.get_freeze_count())
        raise KeyError
    assert min(counts) > 1000
    assert gc.get_freeze_count() == 0
    if before:  # as the process that runs the tests has it
        gc.freeze()
