"""The extraction actor, without Ray."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from conftest import GOLDEN

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import CorpusFile, plan_file
from scalselect_ray.io.storage import stat
from scalselect_ray.stages.extract import ExtractSlices, prepare_unit
from scalselect_ray.store.features import FeatureStore, features_of
from scalselect_ray.store.layout import Output
from scalselect_ray.vlm.representer import description_of, id_of, preparing_of


@pytest.mark.heavy
def test_two_slices_at_once_take_turns_on_the_device_and_give_the_same_features(tmp_path):
    extractor = ExtractorConfig(model=str(GOLDEN / "llava" / "model"), dtype="float32")
    slices = plan_file(
        CorpusFile("golden", stat(str(GOLDEN / "llava" / "samples.json")), str(GOLDEN / "llava"), 6, 1 << 30)
    )
    units = [pa.table({"unit": [json.dumps([part.to_dict()])]}) for part in slices]
    prepared = [row for unit in units for row in prepare_unit(unit, extractor, preparing_of(extractor))]
    stores = [FeatureStore(Output(str(tmp_path / name)), id_of(description_of(extractor))) for name in ("one", "two")]
    actor = ExtractSlices(extractor, 1, stores[0])
    for row in prepared:
        actor(row)

    together = ExtractSlices(extractor, 1, stores[1])
    inside, most, represent = 0, 0, together._extractor

    class Watched:
        dim = represent.dim

        def __call__(self, samples):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            answers = represent(samples)
            inside -= 1
            return answers

    together._extractor = Watched()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(together, prepared))
    assert most == 1
    assert stores[0].committed() == stores[1].committed() == {part.id for part in slices}
    for part in slices:
        one, two = (features_of(store.read(part.id)) for store in stores)
        assert (one == two).all()
