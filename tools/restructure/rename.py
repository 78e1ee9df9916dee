"""Rename module-level names everywhere. usage: rename.py ROOT TABLE.json  ({dotted module: {old: new}})"""
import ast, importlib.util, json, re, subprocess, sys
from pathlib import Path
src = Path(__file__).with_name("move.py").read_text()
ns = {}
start, end = src.index("def scopes"), src.index("def rewrite")
exec("import ast\n" + src[start:end], ns)
scopes = ns["scopes"]
ROOT = Path(sys.argv[1]).resolve(); TABLE = json.load(open(sys.argv[2]))
SRC = ROOT / "src"
conflicts = []
def module_of(f):
    if SRC in f.parents:
        parts = list(f.relative_to(SRC).with_suffix("").parts)
        if parts[-1] == "__init__": parts.pop()
        return ".".join(parts)
    return None
def rewrite(f):
    text = f.read_text(); tree = ast.parse(text)
    where, bound, resolve = scopes(tree)
    raw = text.encode(); lines = raw.split(b"\n")
    offs = [0]
    for l in lines: offs.append(offs[-1] + len(l) + 1)
    pos = lambda n: (offs[n.lineno - 1] + n.col_offset, offs[n.end_lineno - 1] + n.end_col_offset)
    edits = {}
    mod = module_of(f)
    own = TABLE.get(mod, {})
    local = {}   # (scope, name) -> new
    mods = {}    # (scope, name) -> module in TABLE
    for old, new in own.items():
        local[tree, old] = new
        if new in bound[tree]: conflicts.append(f"{f}: {new} is bound at module level already ({old})")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            s = where[node]
            for a in node.names:
                full = f"{node.module}.{a.name}"
                if full in TABLE: mods[s, a.asname or a.name] = full
                new = TABLE.get(node.module, {}).get(a.name)
                if new:
                    st, _ = pos(a)
                    edits[st, st + len(a.name.encode())] = new
                    if not a.asname: local[s, a.name] = new
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.asname and a.name in TABLE: mods[where[node], a.asname] = a.name
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and where.get(node) is tree and node.name in own:
            kw = b"class" if isinstance(node, ast.ClassDef) else b"def"
            at = raw.index(kw + b" " + node.name.encode(), offs[node.lineno - 1]) + len(kw) + 1
            edits[at, at + len(node.name.encode())] = own[node.name]
        if isinstance(node, ast.Name) and node in where:
            s = resolve(where[node], node.id)
            if (s, node.id) in local:
                new = local[s, node.id]
                r = resolve(where[node], new)
                if r is not None and r is not s: conflicts.append(f"{f}:{node.lineno}: {new} is shadowed ({node.id})")
                elif r is s and new in bound[s] and (s is not tree or new not in own.values()): conflicts.append(f"{f}:{node.lineno}: {new} is bound already ({node.id})")
                edits[pos(node)] = new
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value in where:
            s = resolve(where[node.value], node.value.id)
            m = mods.get((s, node.value.id))
            if m and node.attr in TABLE[m]:
                a, b = pos(node)
                edits[b - len(node.attr.encode()), b] = TABLE[m][node.attr]
        if isinstance(node, ast.Call) and len(node.args) >= 2 and isinstance(node.args[0], ast.Name) and isinstance(node.args[1], ast.Constant) and isinstance(node.args[1].value, str):
            s = resolve(where[node.args[0]], node.args[0].id) if node.args[0] in where else None
            m = mods.get((s, node.args[0].id))
            if m and node.args[1].value in TABLE[m]:
                edits[pos(node.args[1])] = json.dumps(TABLE[m][node.args[1].value])
    # strings: docstrings and annotations
    names = {n: new for (s, n), new in local.items()}
    modnames = {n: m for (s, n), m in mods.items()}
    anns = set()
    def strings(a):  # quoted types; never what stands in Literal[...]
        if isinstance(a, ast.Subscript) and isinstance(a.value, (ast.Name, ast.Attribute)) and (getattr(a.value, "id", "") or getattr(a.value, "attr", "")) == "Literal": return
        if isinstance(a, ast.Constant) and isinstance(a.value, str): anns.add(a)
        for c in ast.iter_child_nodes(a): strings(c)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            a = getattr(node, field, None)
            if a is not None: strings(a)
        # generic types outside annotations, list["Point"](), but no keys: record["config"]
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            i = node.value.id
            if i in ("list", "dict", "set", "tuple", "type", "frozenset") or (i[0].isupper() and not i.isupper() and i != "Literal"): strings(node.slice)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)): continue
        a, b = pos(node); s = raw[a:b].decode(); n = s
        if node in anns or "\n" not in s:
            pass
        if node in anns:
            n = re.sub(r"(?<![\w.])(\w+)\.(\w+)", lambda m: f"{m[1]}.{TABLE[modnames[m[1]]].get(m[2], m[2])}" if m[1] in modnames else m[0], n)
            n = re.sub(r"(?<![\w.])(\w+)", lambda m: names.get(m[1], m[1]), n)
        else:
            n = docs(n, names, modnames)
        if n != s and not any(x[0] >= a and x[1] <= b for x in edits): edits[a, b] = n
    if not edits: return
    for (a, b), new in sorted(edits.items(), reverse=True): raw = raw[:a] + new.encode() + raw[b:]
    f.write_bytes(raw)
BASES = {}
for m, t in TABLE.items():
    for old, new in t.items(): BASES.setdefault(m.rpartition(".")[2], {})[old] = new
def docs(s, names, modnames):
    for m, t in TABLE.items():
        if m in s:
            for old, new in t.items(): s = re.sub(rf"{re.escape(m)}\.{old}\b", f"{m}.{new}", s)
    def role(m):
        body = m[2]
        head, dot, last = body.rpartition(".")
        if not dot and last in names: return f"{m[1]}{names[last]}{m[3]}"
        if dot and head in BASES and last in BASES[head]: return f"{m[1]}{head}.{BASES[head][last]}{m[3]}"
        return m[0]
    s = re.sub(r"(:(?:func|class|data|meth):`)([\w.]+)(`)", role, s)
    s = re.sub(r"(``)([\w]+\.[\w]+)(``)", role, s)
    return s
files = [ROOT / p for p in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()]
for f in files:
    if f.suffix == ".py" and f.exists(): rewrite(f)
    elif f.suffix == ".md" and f.name not in ("LOG.md", "CHANGELOG.md"):
        t = f.read_text()
        n = re.sub(r"(`)([\w]+)\.([\w]+)(`)", lambda m: f"{m[1]}{m[2]}.{BASES[m[2]][m[3]]}{m[4]}" if m[2] in BASES and m[3] in BASES[m[2]] else m[0], t)
        if n != t: f.write_text(n)
print("\n".join(conflicts)); print(len(conflicts), "conflicts")
