"""Fitting of models and encoders to data: extra ``fit``."""

from importlib.util import find_spec

from sqlvec.errors import MissingRequirement

for _module in ("scipy", "sklearn", "threadpoolctl"):
    if find_spec(_module) is None:
        raise MissingRequirement(f"fitting needs {_module}: pip install 'sqlvec[fit]'")
