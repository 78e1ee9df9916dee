"""The page's modules: their unit tests under node, and the bundle that the page holds."""

import re
import shutil
import subprocess

import pytest

from depthcut.report import bundle, page
from running import ROOT

STATIC = ROOT / "src" / "depthcut" / "report" / "static"
NODE = shutil.which("node")
NEEDED = 20  # major version of node


def node_version() -> int:
    if NODE is None:
        return 0
    said = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.lstrip("v").split(".")[0])


needs_node = pytest.mark.skipif(node_version() < NEEDED, reason=f"no node {NEEDED} or newer on this machine")


@needs_node
def test_the_pure_modules_pass_their_tests_under_node():
    tests = sorted(map(str, (ROOT / "tests" / "browser").glob("*.test.mjs")))
    done = subprocess.run([NODE, "--test", *tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"# pass (\d+)|ℹ pass (\d+)", done.stdout)[0].split()[-1]) > 50


@needs_node
def test_the_bundle_is_javascript(tmp_path):
    path = tmp_path / "page.cjs"
    path.write_text(page.page_script())
    done = subprocess.run([NODE, "--check", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_bundle_has_every_module_once_after_what_it_imports():
    script = page.page_script()
    assert script.startswith('"use strict";\n{\n') and script.endswith("}\n")
    defined = re.findall(r'^modules\["([\w-]+\.js)"\] = ', script, re.MULTILINE)
    assert sorted(defined) == sorted(path.name for path in STATIC.glob("*.js")) and defined[-1] == "main.js"
    for name in defined:
        module = bundle.parse_module(name, (STATIC / name).read_text())
        assert all(defined.index(source) < defined.index(name) for source in module.imports)
    assert page.page_script.__wrapped__() == script


def test_every_import_and_every_export_is_used():
    modules = [bundle.parse_module(path.name, path.read_text()) for path in STATIC.glob("*.js")]
    tested = "".join(path.read_text() for path in (ROOT / "tests" / "browser").glob("*.mjs"))
    imported = {(source, name) for module in modules for source, names in module.imports.items() for name in names}
    for module in modules:
        for names in module.imports.values():
            assert all(re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", module.body) for name in names), module.name
        unused = {name for name in module.exports if (module.name, name) not in imported}
        assert all(re.search(rf"\b{name}\b", tested) for name in unused), (module.name, unused)


def bundled(**modules: str) -> str:
    return bundle.bundle_modules("main.js", lambda name: modules[name.removesuffix(".js")])


def test_modules_are_defined_in_the_order_of_their_imports():
    script = bundled(
        main='import { b } from "./b.js";\nimport { a } from "./a.js";\nuse(a, b);\n',
        a="export const a = 1;\n",
        b='import { a } from "./a.js";\nconst private_ = a;\nexport async function b() {}\nexport class C {}\n',
    )
    assert script == (
        '"use strict";\n{\nconst modules = {};\n'
        'modules["a.js"] = (() => {\nconst a = 1;\nreturn { a };\n})();\n'
        'modules["b.js"] = (() => {\nconst { a } = modules["a.js"];\n'
        "const private_ = a;\nasync function b() {}\nclass C {}\nreturn { b, C };\n})();\n"
        'modules["main.js"] = (() => {\nconst { b } = modules["b.js"];\nconst { a } = modules["a.js"];\n'
        "use(a, b);\nreturn {  };\n})();\n}\n"
    )


def test_imports_over_several_lines():
    script = bundled(main='import {\n  $,\n  b,\n} from "./a.js";\n', a="export const $ = 1;\nexport const b = 2;\n")
    assert 'const { $, b } = modules["a.js"];' in script


@pytest.mark.parametrize(
    "form",
    [
        'import a from "./a.js";',
        'import * as a from "./a.js";',
        'import { a as b } from "./a.js";',
        'import "./a.js";',
        "import { a } from './a.js';",
        'import { a } from "https://example.org/a.js";',
        'const a = await import("./a.js");',
        "const here = import.meta.url;",
        "export default 1;",
        "export let a = 1;",
        "export const { a } = b;",
        "export { a };",
        'export * from "./a.js";',
    ],
)
def test_other_forms_of_import_and_export_are_refused(form):
    with pytest.raises(bundle.BundleError, match=r"^main\.js: .*cannot be bundled"):
        bundled(main=f"const b = 1;\n{form}\n", a="export const a = 1;\n")


def test_what_ends_a_script_element_is_refused():
    for text in ("</SCRIPT >", "<!--"):
        with pytest.raises(bundle.BundleError, match="cannot stand in a script element"):
            bundled(main=f'const text = "{text}";\n')


def test_an_import_of_what_is_not_exported_is_refused():
    with pytest.raises(bundle.BundleError, match=r"main\.js imports b from a\.js, which does not export it"):
        bundled(main='import { a, b } from "./a.js";\n', a="export const a = 1;\nconst b = 2;\n")


def test_cycles_are_refused():
    with pytest.raises(bundle.BundleError, match=r"cycle: main\.js > a\.js > b\.js > a\.js"):
        bundled(
            main='import { a } from "./a.js";\n', a='import { b } from "./b.js";\n', b='import { a } from "./a.js";\n'
        )
