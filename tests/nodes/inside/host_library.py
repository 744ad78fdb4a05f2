"""The host's own library, readied in this process, and this pack loaded into it.

The arguments of the process: HOST BASE PACK OUT [the host's own flags].
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys

HOST, BASE, PACK, OUT = (os.path.abspath(path) for path in sys.argv[1:5])  # noqa: PTH100
sys.argv = ["main.py", "--cpu", "--base-directory", BASE, *sys.argv[5:]]
os.chdir(HOST)
sys.path.insert(0, HOST)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

before = set(sys.modules)
spec = importlib.util.spec_from_file_location("hyphen-pack", f"{PACK}/__init__.py", submodule_search_locations=[PACK])
assert spec is not None and spec.loader is not None
sys.modules["hyphen-pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
node_classes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
imported = set(sys.modules) - before
