"""Bundle the page's ES modules into one classic script, because a page opened from a file cannot import modules.

Each module becomes a function that returns its exports; the functions are called in the order of the imports. Other
names stay private to their module, as they do in the browser. Only these forms are supported, unindented, as prettier
writes them:

    import { name, other } from "./module.js";
    export const name = ...        also: export function, export async function, export class
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

IMPORT = re.compile(r'^import \{\s*([\w$]+(?:,\s*[\w$]+)*),?\s*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|(?:async )?function|class) ([\w$]+))", re.MULTILINE)
OTHER_FORMS = re.compile(r"^[ \t]*(?:import|export)\b.*|\bimport\s*[.(].*", re.MULTILINE)
ENDS_SCRIPT = re.compile(r"</script|<!--", re.IGNORECASE)  # either changes how HTML reads the rest of a script element


class BundleError(Exception):
    """A module uses a form that cannot be bundled, or imports what does not exist."""


@dataclass(frozen=True)
class Module:
    """A module without its import and export keywords; ``imports`` maps modules to the names taken from them."""

    name: str
    body: str
    imports: Mapping[str, tuple[str, ...]]
    exports: tuple[str, ...]

    @property
    def script(self) -> str:
        """The statement that defines the module; what it imports must be defined before."""
        imports = "".join(
            f'const {{ {", ".join(names)} }} = modules["{source}"];\n' for source, names in self.imports.items()
        )
        exports = f"return {{ {', '.join(self.exports)} }};\n"
        return f'modules["{self.name}"] = (() => {{\n{imports}{self.body}{exports}}})();\n'


def bundle_modules(entry: str, read: Callable[[str], str]) -> str:
    """Return one strict script of the module ``entry`` and all that it imports; ``read`` returns a module's text.

    Raises:
        BundleError: for another form of import or export, an import that is not exported, and a cycle of imports.
    """
    modules = import_order(entry, read, {}, ())
    return '"use strict";\n{\nconst modules = {};\n' + "".join(module.script for module in modules.values()) + "}\n"


def import_order(
    name: str, read: Callable[[str], str], done: dict[str, Module], importers: tuple[str, ...]
) -> dict[str, Module]:
    """Add a module to ``done``, after the modules that it imports."""
    if name in importers:
        raise BundleError(f"imports form a cycle: {' > '.join((*importers, name))}")
    if name in done:
        return done
    module = parse_module(name, read(name))
    for source, names in module.imports.items():
        import_order(source, read, done, (*importers, name))
        if missing := sorted(set(names) - set(done[source].exports)):
            raise BundleError(f"{name} imports {', '.join(missing)} from {source}, which does not export it")
    done[name] = module
    return done


def parse_module(name: str, text: str) -> Module:
    """Separate a module's imports and exports from its body."""
    imports: dict[str, tuple[str, ...]] = {}
    for found in IMPORT.finditer(text):
        imports[found[2]] = (*imports.get(found[2], ()), *re.split(r",\s*", found[1]))
    body = EXPORT.sub("", IMPORT.sub("", text))
    for pattern, problem in ((OTHER_FORMS, "cannot be bundled"), (ENDS_SCRIPT, "cannot stand in a script element")):
        if found := pattern.search(body):
            raise BundleError(f"{name}: {found[0].strip()!r} {problem}")
    return Module(name, body.rstrip("\n") + "\n", imports, tuple(EXPORT.findall(text)))
