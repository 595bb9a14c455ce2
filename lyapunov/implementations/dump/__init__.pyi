from ._dump import write_dump as write_dump
from .file import File as File
from .implementation import DumpImplementation as DumpImplementation
