"""One file a format. Adding one: a module with a `Format`, and a line in `FORMATS`."""

from scalselect_ray.exports.base import Format
from scalselect_ray.exports.formats.csv_table import CsvTable
from scalselect_ray.exports.formats.datacomp import DataComp
from scalselect_ray.exports.formats.energon import Energon
from scalselect_ray.exports.formats.hf import HuggingFace
from scalselect_ray.exports.formats.internvl import InternVL
from scalselect_ray.exports.formats.llama_factory import LlamaFactory
from scalselect_ray.exports.formats.llava import Llava
from scalselect_ray.exports.formats.llava_next import LlavaNext
from scalselect_ray.exports.formats.ms_swift import MsSwift
from scalselect_ray.exports.formats.qwen_vl import QwenVL
from scalselect_ray.exports.formats.source import Source
from scalselect_ray.exports.formats.webdataset import WebDatasetShards

FORMATS: dict[str, Format] = {
    "llava": Llava(),
    "llava-next": LlavaNext(),
    "llama-factory": LlamaFactory(),
    "ms-swift": MsSwift(),
    "qwen-vl": QwenVL(),
    "internvl": InternVL(),
    "hf": HuggingFace(),
    "webdataset": WebDatasetShards(),
    "source": Source(),
    "energon": Energon(),
    "datacomp": DataComp(),
    "csv": CsvTable(),
}
