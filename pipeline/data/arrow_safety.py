"""Ray Data's Arrow type of pickled Python objects, disarmed.

A column of a Parquet file can claim this type. Once `ray.data` is imported, any reader of such a value (this
package, pandas, `datasets`) unpickles it, which runs code that the file's author chose. setbacks does not
need the type.
"""

from contextlib import suppress

import pyarrow as pa

NAME = "ray.data.arrow_pickled_object"


class _Pickles(pa.ExtensionType):
    """The type's name without its meaning: a value is the bytes it is stored as."""

    def __init__(self, storage_type: pa.DataType = pa.large_binary()):
        super().__init__(storage_type, NAME)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "_Pickles":
        return cls(storage_type)


def block_pickled_type() -> None:
    """Have Arrow read such columns as bytes in this process, before or after Ray Data is imported.

    Ray finds the name registered and keeps that registration. Ray's own check refuses such files by type name
    and still works.
    """
    with suppress(KeyError):
        pa.unregister_extension_type(NAME)
    pa.register_extension_type(_Pickles())
