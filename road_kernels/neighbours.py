"""The former name of road_kernels.related_adapters."""

from .functional.related_adapters import butterfly, ia3_tables, oft_tables, ssf_tables

__all__ = ["butterfly", "ia3_tables", "oft_tables", "ssf_tables"]
