#!/usr/bin/env python3
"""Writes docs/API.md from the comments of the protos and the error table of src/error.rs.

    tools/api_doc.py            writes it
    tools/api_doc.py --check    fails if it is not what would be written

It needs grpcio-tools, which examples/python/requirements.txt names: the protos are compiled to a descriptor set with
their comments, so that what is documented is what is compiled.
"""
import difflib
import importlib.resources
import pathlib
import re
import sys
import tempfile

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "API.md"
FILES = ["latentgate/v1/latents.proto", "latentgate/v1/cache_admin.proto"]
PACKAGE = ".latentgate.v1."
SERVED = {
    "latentgate/v1/latents.proto": "the data port",
    "latentgate/v1/cache_admin.proto": "the admin port",
}

# Field numbers of descriptor.proto, of which a location's path is made.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE, FILE_PACKAGE = 4, 5, 6, 2
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM, MESSAGE_ONEOF = 2, 3, 4, 8
ENUM_VALUE, SERVICE_METHOD = 2, 2

Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in Field.Type.items()
    if number not in (Field.TYPE_MESSAGE, Field.TYPE_ENUM, Field.TYPE_GROUP)
}

INTRODUCTION = """\
# API reference

Made from the comments in [`proto/`](../proto/latentgate/v1) and the table in `src/error.rs` by `tools/api_doc.py`; change them
there. [Clients](../examples/README.md) show it at work. The HTTP protocol is in the [README](../README.md#diffusers-sdnext-comfyui).
"""

ERRORS = """\
## Errors

`ErrorInfo.reason` is stable, and in lower case it is the label of `latentgate_errors_total`. *Again*: the same request can
succeed later; `RetryInfo` (HTTP: `Retry-After`) says when.

| reason | gRPC | HTTP | again | meaning |
|---|---|---|---|---|
"""


def compile_protos():
    """The files as descriptors, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "set"
        well_known = importlib.resources.files("grpc_tools") / "_proto"
        arguments = [f"-I{ROOT / 'proto'}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *arguments, *FILES]):
            sys.exit("the protos do not compile")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


class Page:
    def __init__(self, file):
        self.file = file
        self.comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
        self.lines = []

    def comment(self, *path):
        """Paragraphs of a comment. What is indented in it stays as it is."""
        text = self.comments.get(path, "")
        return "\n".join(line.removeprefix(" ").rstrip() for line in text.splitlines())

    def text(self, *path):
        """A comment as Markdown; its tables are code."""
        lines = [f"  {line}" if line.startswith("  ") else line for line in self.comment(*path).splitlines()]
        if lines:
            self.lines += [*lines, ""]

    def cell(self, *path):
        """A comment in one line of a table."""
        return " ".join(self.comment(*path).split()).replace("|", "\\|")

    def heading(self, level, name):
        self.lines += [f"{'#' * level} {name}", ""]

    def table(self, head, rows):
        rows = [head, ["---"] * len(head), *rows]
        self.lines += ["| " + " | ".join(row) + " |" if row[0] != "---" else "|" + "|".join(row) + "|" for row in rows]
        self.lines.append("")

    def service(self, at, service):
        self.heading(2, service.name)
        self.lines += [f"`{self.file.package}.{service.name}`, on {SERVED[self.file.name]}.", ""]
        self.text(FILE_SERVICE, at)
        for index, method in enumerate(service.method):
            stream = {True: "stream of ", False: ""}
            self.heading(3, f"{service.name}.{method.name}")
            asked = stream[method.client_streaming] + link(method.input_type)
            answered = stream[method.server_streaming] + link(method.output_type)
            self.lines += [f"{asked} → {answered}", ""]
            self.text(FILE_SERVICE, at, SERVICE_METHOD, index)

    def enum(self, path, prefix, enum):
        self.heading(3, prefix + enum.name)
        self.text(*path)
        values = enumerate(enum.value)
        rows = [[f"`{value.name}`", str(value.number), self.cell(*path, ENUM_VALUE, i)] for i, value in values]
        self.table(["value", "number", "meaning"], rows)

    def message(self, path, prefix, message):
        name = prefix + message.name
        self.heading(3, name)
        self.text(*path)
        if message.field:
            self.table(["field", "type", "number", "meaning"], self.fields(path, message))
        for index, nested in enumerate(message.nested_type):
            self.message((*path, MESSAGE_NESTED, index), f"{name}.", nested)
        for index, enum in enumerate(message.enum_type):
            self.enum((*path, MESSAGE_ENUM, index), f"{name}.", enum)

    def fields(self, path, message):
        begun = set()
        for index, field in enumerate(message.field):
            name = f"`{field.name}`"
            if field.HasField("oneof_index") and not field.proto3_optional:
                if field.oneof_index not in begun:
                    begun.add(field.oneof_index)
                    oneof = message.oneof_decl[field.oneof_index].name
                    yield [f"one of `{oneof}`:", "", "", self.cell(*path, MESSAGE_ONEOF, field.oneof_index)]
                name = f"· {name}"
            yield [name, type_of(field), str(field.number), self.cell(*path, MESSAGE_FIELD, index)]

    def write(self):
        for index, service in enumerate(self.file.service):
            self.service(index, service)
        self.heading(2, f"Messages of {self.file.service[0].name}")
        self.text(FILE_PACKAGE)
        # By their place in the file, where enums stand before those that use them.
        order = {tuple(at.path): at.span[0] for at in self.file.source_code_info.location}
        messages = [((FILE_MESSAGE, i), self.message, it) for i, it in enumerate(self.file.message_type)]
        enums = [((FILE_ENUM, i), self.enum, it) for i, it in enumerate(self.file.enum_type)]
        for path, write, it in sorted(messages + enums, key=lambda entry: order[entry[0]]):
            write(path, "", it)
        return self.lines


def link(full):
    name = full.removeprefix(PACKAGE)
    return f"[{name}](#{name.replace('.', '').lower()})"


def type_of(field):
    name = SCALARS.get(field.type) or link(field.type_name)
    if field.label == Field.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def errors():
    """Rows of the one error table, as src/error.rs has them."""
    source = (ROOT / "src" / "error.rs").read_text()
    kinds = source[source.index("pub enum ErrorKind {") :]
    kinds = kinds[: kinds.index("\n}")]
    meanings = dict((name, doc) for doc, name in re.findall(r"/// (.*)\n    (\w+),", kinds))
    codes = source[source.index("pub enum GrpcCode {") :]
    codes = re.findall(r"(\w+) = \d+", codes[: codes.index("\n}")])
    rows = re.findall(r'Self::(\w+) => \{?\s*\("(\w+)", G::(\w+), (\d+), (\w+),', source)
    if {name for name, *_ in rows} != set(meanings) or not {row[2] for row in rows} <= set(codes):
        sys.exit("the table in src/error.rs is not written as this program reads it")
    for name, reason, grpc, http, retry in rows:
        status = re.sub(r"(?<!^)(?=[A-Z])", "_", grpc).upper()
        yield f"| `{reason}` | {status} | {http} | {'yes' if retry == 'Later' else 'no'} | {meanings[name]} |"


def page():
    lines = [INTRODUCTION]
    for file in compile_protos():
        lines += Page(file).write()
    return "\n".join([*lines, ERRORS + "\n".join(errors())]) + "\n"


def main():
    wanted = page()
    if sys.argv[1:] == ["--check"]:
        found = PAGE.read_text() if PAGE.exists() else ""
        if found != wanted:
            changes = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "docs/API.md", "wanted", lineterm="", n=0)
            print("\n".join(changes), file=sys.stderr)
            sys.exit("docs/API.md is not what the protos and src/error.rs say: run tools/api_doc.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
