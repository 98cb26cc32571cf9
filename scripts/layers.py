"""Refuses modules that import each other in a circle, and modules that use a crate which they must know nothing of.

Each file of a crate is a module; `use` and paths that begin with `crate::` or `super::` are its imports. A child may use what
its parents define; everything else must lead in one direction. Tests are not looked at.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What decides is pure: it is told the time, and asks for rows. `deny.toml` says the same of whole crates.
WALLS = {
    "db/src/rules": ("rusqlite", "tokio"),
    "db/src/tx": ("rusqlite", "tokio"),
    "scheduler/src/fleet": ("tokio",),
    "scheduler/src/ledger.rs": ("tokio",),
    "scheduler/src/turns.rs": ("tokio",),
    "worker/pool/src/state": ("tokio", "std::fs"),
    "worker/src/session/holdings.rs": ("tokio",),
}


def modules(source):
    """Every module of a crate by its path, with its file."""
    found = {}
    for file in source.rglob("*.rs"):
        parts = file.relative_to(source).with_suffix("").parts
        if parts[0] == "bin" or parts[-1] == "tests":
            continue
        found[parts[:-1] if parts[-1] in ("mod", "lib", "main") else parts] = file
    return found


def code(file):
    """The text of a module without comments and unit tests."""
    text = re.sub(r"//[^\n]*", "", file.read_text())
    return re.split(r"#\[cfg\(test\)\]\s*(?:#\[allow[^\]]*\]\s*)?mod tests", text)[0]


def leaves(tree):
    """The paths that a use tree names: `a::{b, c::d}` is `a::b` and `a::c::d`."""
    match = re.match(r"^(.*?)\{(.*)\}$", tree.strip(), re.DOTALL)
    if not match:
        return [tree.split(" as ")[0].strip()]
    paths, depth, part = [], 0, ""
    for character in match[2] + ",":
        if character == "," and depth == 0:
            if part.strip():
                paths += leaves(match[1] + part.strip())
            part = ""
        else:
            depth += (character == "{") - (character == "}")
            part += character
    return paths


def imports(module, file, known):
    """The modules of its crate that a module uses, but for its parents."""
    text, used = code(file), set()
    trees = re.findall(r"\buse ((?:crate|super|self|[a-z_]+)(?:::[^;]+)?);", text)
    trees += re.findall(r"\b((?:crate|super)(?:::[a-z_0-9]+)+)", text)
    for path in (path for tree in trees for path in leaves(tree)):
        parts = path.split("::")
        if parts[0] == "crate":
            place = parts[1:]
        elif parts[0] in ("super", "self"):
            place = list(module)
            while parts and parts[0] in ("super", "self"):
                place = place[:-1] if parts.pop(0) == "super" else place
            place += parts
        elif (*module, parts[0]) in known:
            place = [*module, *parts]
        else:
            continue
        target = tuple(place)
        while target and target not in known:
            target = target[:-1]
        if target and module[: len(target)] != target:
            used.add(target)
    return used


def circle(graph):
    """The modules of one circle, in the order of their imports; none where there is no circle."""
    done = set()

    def visit(module, way):
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return None
        for target in sorted(graph[module]):
            found = visit(target, [*way, module])
            if found:
                return found
        done.add(module)
        return None

    return next(filter(None, (visit(module, []) for module in sorted(graph))), None)


def breaches():
    """What is used behind each wall, in words."""
    for place, crates in WALLS.items():
        path = ROOT / place
        files = sorted(path.rglob("*.rs")) if path.is_dir() else [path]
        for file in (file for file in files if file.stem != "tests"):
            for crate in crates:
                if re.search(rf"\b{crate}\b", code(file)):
                    yield f"{file.relative_to(ROOT)}: uses {crate}, of which it must know nothing"


def main():
    has_circle = False
    for manifest in sorted(ROOT.rglob("Cargo.toml")):
        source = manifest.parent / "src"
        if "target" in manifest.parts or not source.is_dir():
            continue
        known = modules(source)
        found = circle({module: imports(module, file, known) for module, file in known.items()})
        if found:
            has_circle = True
            way = " -> ".join("::".join(module) for module in [*found, found[0]])
            print(f"{source.relative_to(ROOT)}: modules import each other in a circle: {way}", file=sys.stderr)
    found = list(breaches())
    print("".join(f"{breach}\n" for breach in found), end="", file=sys.stderr)
    sys.exit(has_circle or bool(found))


if __name__ == "__main__":
    main()
