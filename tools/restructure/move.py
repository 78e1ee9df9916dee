"""Move modules and rewrite imports. usage: move.py ROOT MAPFILE(json {old: new})"""
import ast, json, re, subprocess, sys
from pathlib import Path

ROOT = Path(sys.argv[1]); MAP = json.load(open(sys.argv[2]))  # dotted, without 'depthcut.'
FULL = {f"depthcut.{o}": f"depthcut.{n}" for o, n in MAP.items()}
SRC = ROOT / "src"

def path_of(mod):
    p = SRC / Path(*mod.split("."))
    return p / "__init__.py" if p.is_dir() else p.with_suffix(".py")

def scopes(tree):
    """yield mapping node->scope, scope bindings"""
    parent_scope = {}
    bound = {tree: set()}
    up = {tree: None}
    SC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    where = {}
    def bind(scope, name):
        # comprehension walrus ignored
        bound[scope].add(name)
    def visit(node, scope):
        where[node] = scope
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            bind(scope, node.name)
            for d in node.decorator_list: visit(d, scope)
            for d in [*node.args.defaults, *[k for k in node.args.kw_defaults if k]]: visit(d, scope)
            for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]:
                if a is not None and a.annotation: visit(a.annotation, scope)
            if node.returns: visit(node.returns, scope)
            bound[node] = set(); up[node] = scope
            for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]:
                if a is not None: bind(node, a.arg)
            for c in node.body: visit(c, node)
            return
        if isinstance(node, ast.Lambda):
            bound[node] = set(); up[node] = scope
            for d in [*node.args.defaults, *[k for k in node.args.kw_defaults if k]]: visit(d, scope)
            for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]:
                if a is not None: bind(node, a.arg)
            visit(node.body, node); return
        if isinstance(node, ast.ClassDef):
            bind(scope, node.name)
            for d in [*node.decorator_list, *node.bases, *[k.value for k in node.keywords]]: visit(d, scope)
            bound[node] = set(); up[node] = scope
            for c in node.body: visit(c, node)
            return
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            bound[node] = set(); up[node] = scope
            gens = node.generators
            visit(gens[0].iter, scope)
            for i, g in enumerate(gens):
                where[g] = node
                visit(g.target, node)
                if i: visit(g.iter, node)
                for c in g.ifs: visit(c, node)
            if isinstance(node, ast.DictComp): visit(node.key, node); visit(node.value, node)
            else: visit(node.elt, node)
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)): bind(scope, node.id)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for a in node.names: bind(scope, (a.asname or a.name).split(".")[0])
        if isinstance(node, ast.ExceptHandler) and node.name: bind(scope, node.name)
        if isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name: bind(scope, node.name)
        for c in ast.iter_child_nodes(node): visit(c, scope)
    for c in tree.body: visit(c, tree)
    def resolve(scope, name):
        first = True
        while scope is not None:
            if name in bound[scope] and (first or not isinstance(scope, ast.ClassDef)): return scope
            first = False; scope = up[scope]
        return None
    return where, bound, resolve

def rewrite(f):
    text = f.read_text(); tree = ast.parse(text)
    where, bound, resolve = scopes(tree)
    lines = text.split("\n")
    offs = [0]
    for l in lines: offs.append(offs[-1] + len(l.encode()) + 1)
    raw = text.encode()
    edits = []
    pos = lambda n: (offs[n.lineno - 1] + n.col_offset, offs[n.end_lineno - 1] + n.end_col_offset)
    allnames = set().union(*bound.values())
    renames = {}  # (scope, old) -> new
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and node.module.split(".")[0] == "depthcut":
            scope = where[node]
            keep, out = [], []
            for a in node.names:
                full = f"{node.module}.{a.name}"
                if full in FULL:  # imports a module
                    new = FULL[full]; pkg, _, base = new.rpartition(".")
                    if a.asname or base == a.name:
                        out.append(f"from {pkg} import {base}" + (f" as {a.asname}" if a.asname else ""))
                    else:
                        target = base
                        if base in allnames or base in sys.stdlib_module_names and base != "queue":
                            target = ALIAS.get(base, f"{pkg.rpartition('.')[2]}_{base}")
                        out.append(f"from {pkg} import {base}" + (f" as {target}" if target != base else ""))
                        renames[scope, a.name] = target
                        if target != base: print(f"alias {f}: {base} as {target}", file=sys.stderr)
                elif node.module in FULL:
                    out.append(f"from {FULL[node.module]} import {a.name}" + (f" as {a.asname}" if a.asname else ""))
                else: keep.append(a)
            if out:
                if keep:
                    out.insert(0, f"from {node.module} import " + ", ".join(a.name + (f" as {a.asname}" if a.asname else "") for a in keep))
                indent = " " * node.col_offset
                edits.append((*pos(node), ("\n" + indent).join(out)))
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name in FULL:
                    edits.append((*pos(node), f"import {FULL[a.name]}" + (f" as {a.asname}" if a.asname else "")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node in where:
            s = resolve(where[node], node.id)
            if (s, node.id) in renames: edits.append((*pos(node), renames[s, node.id]))
    for node in ast.walk(tree):   # strings naming modules
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "depthcut." in node.value:
            a, b = pos(node); s = raw[a:b].decode(); n = dotted(s)
            if n != s: edits.append((a, b, n))
    if not edits: return
    edits.sort(reverse=True)
    last = None
    for a, b, new in edits:
        if last is not None and b > last: raise SystemExit(f"overlap in {f}: {raw[a:b]} {new}")
        raw = raw[:a] + new.encode() + raw[b:]; last = a
    f.write_bytes(raw)

ALIAS = {}
KEYS = sorted(FULL, key=len, reverse=True)
RX = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, KEYS)) + r")(?![\w])(?!/)")
def dotted(s): return RX.sub(lambda m: FULL[m[1]], s)

def main():
    global ALIAS
    if len(sys.argv) > 3: ALIAS = json.load(open(sys.argv[3]))
    files = [Path(ROOT / p) for p in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()]
    for f in files:
        if f.suffix == ".py" and f.exists(): rewrite(f)
        elif f.suffix in (".md", ".yaml", ".toml") or f.name == "Makefile":
            if f.name in ("LOG.md", "CHANGELOG.md"): continue
            t = f.read_text(); n = dotted(t)
            if n != t: f.write_text(n)
    for o, n in FULL.items():
        pkg = o in ("depthcut.heal.training", "depthcut.heal.width", "depthcut.data.questions")
        a = SRC / o.replace(".", "/") / "__init__.py" if pkg or o == "depthcut.model.surgery.gaps" else (SRC / (o.replace(".", "/") + ".py"))
        b = SRC / n.replace(".", "/") / "__init__.py" if pkg else SRC / (n.replace(".", "/") + ".py")
        b.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "-C", str(ROOT), "mv", str(a), str(b)], check=True)
    print("moved", len(FULL))
main()
