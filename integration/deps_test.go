package integration

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deps is who may import whom among our own packages. It is read as
// documentation first; a new package must be entered here. What stands above
// knows nothing of what stands below it: runtime and egress meet on a socket,
// in the state directory and in the policy file, and only cmd wires.
var deps = map[string][]string{
	"specs/policy":     {"specs/seccomp"},
	"specs/landlock":   {},
	"specs/seccomp":    {},
	"specs/settings":   {},
	"egress/limits":    {},
	"egress/control":   {"egress/limits"},
	"egress/audit":     {"egress/limits"},
	"egress/kaudit":    {},
	"egress/netfilter": {"egress/kaudit"},
	"specs":            {"specs/policy", "specs/landlock", "specs/seccomp"},
	"hooks":            {"egress/control", "egress/limits", "egress/netfilter"},
	"hooks/witness":    {"hooks"},
	"hooks/proof":      {"hooks", "hooks/witness", "egress/control", "egress/audit", "specs/landlock", "specs/policy"},
	"runtime":          {"hooks", "egress/control", "specs", "specs/policy", "specs/landlock", "specs/seccomp", "specs/settings"},
	"egress/dns":       {"egress/limits", "specs/policy", "egress/control"},
	"egress/worker":    {"egress/limits", "egress/dns", "egress/control", "egress/netfilter", "specs/policy"},
	"egress/monitor":   {"egress/limits", "egress/control", "egress/audit", "egress/kaudit", "egress/netfilter", "specs/policy"},
	"egress/denials":   {"egress/control", "egress/kaudit", "specs/seccomp"},

	"cmd/nemoclaw":                    {"runtime", "hooks", "egress/control", "egress/kaudit", "specs", "specs/policy", "specs/landlock", "specs/seccomp", "specs/settings"},
	"cmd/nemoclaw-gateway":            {"egress/monitor", "egress/worker", "egress/denials", "egress/control", "egress/audit", "egress/dns", "egress/netfilter", "hooks", "specs/seccomp", "specs/policy"},
	"cmd/nemoclawctl":                 {"egress/control", "egress/audit", "egress/kaudit", "hooks/proof", "specs/policy", "specs/settings"},
	"cmd/containerd-shim-nemoclaw-v1": {},

	"integration":         {"integration/world", "integration/escape", "egress/kaudit", "egress/audit"},
	"integration/escape":  {},
	"integration/world":   {},
	"integration/probe":   {},
	"integration/client":  {},
	"integration/arm64":   {},
	"integration/engines": {"integration/world", "integration/escape"},
	"integration/mutate":  {},
	"integration/vm":      {},
	"integration/bench":   {"integration/world", "egress/control"},

	"examples/demo":         {"examples/demo/attempt", "integration/world"},
	"examples/demo/agent":   {"examples/demo/attempt"},
	"examples/demo/attempt": {},
}

// apart are what must not be linked, and why.
var apart = map[string]map[string]string{
	"cmd/nemoclaw": {
		"net/http":                                     "it is started several times for each container, and an HTTP server is a tenth of its start",
		"github.com/miekg/dns":                         "it asks and answers no DNS",
		"nemoclaw/egress/denials":                      "it parses nothing that an agent chose",
		"nemoclaw/egress/worker":                       "it parses nothing that an agent sends",
		"nemoclaw/egress/monitor":                      "the gateway is another program",
		"nemoclaw/egress/audit":                        "one writer holds the chain",
		"github.com/landlock-lsm/go-landlock/landlock": "it restricts the launcher, never itself",
	},
	"cmd/nemoclaw-gateway": {
		"github.com/opencontainers/runc/libcontainer": "it creates no containers",
		"nemoclaw/runtime":                            "they meet on a socket",
	},
	"cmd/nemoclawctl": {
		"github.com/opencontainers/runc/libcontainer": "it shows and decides, and confines nothing",
	},
}

// listed is a package as go list tells it.
type listed struct {
	ImportPath, Dir, Doc, Name string
	Imports, Deps              []string
	TestImports, XTestImports  []string
	Module                     struct{ Path string }
}

func packages(t *testing.T) (list []listed) {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "seccomp,landlocktsync", "-json=ImportPath,Dir,Imports,Deps,Doc,Name,Module,TestImports,XTestImports", "../...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=-buildvcs=false")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestWhoMayImportWhom(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, p.Module.Path+"/")
		may, ok := deps[name]
		if !ok {
			t.Errorf("%s: a new package; say in deps what it may import", name)
		}
		imports := p.Imports
		if strings.HasPrefix(name, "integration") {
			imports = slices.Concat(imports, p.TestImports, p.XTestImports) // they attack from outside
		}
		for _, path := range imports {
			if own, ok := strings.CutPrefix(path, p.Module.Path+"/"); ok && !slices.Contains(may, own) {
				t.Errorf("%s may not import %s (it may: %v)", name, own, may)
			}
		}
		for path, why := range apart[name] {
			if slices.Contains(p.Deps, path) {
				t.Errorf("%s is linked with %s: %s", name, path, why)
			}
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", name)
		}
		checkFiles(t, name, p)
	}
}

// checkFiles holds every file of a package to the rules of the tree.
func checkFiles(t *testing.T, name string, p listed) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		rel := filepath.Join(name, filepath.Base(file))
		test := strings.HasSuffix(file, "_test.go")
		for _, i := range f.Imports {
			checkImport(t, rel, strings.Trim(i.Path.Value, `"`), i.Name)
		}
		mayExit := p.Name == "main" || test && isProgram(f)
		ast.Inspect(f, func(n ast.Node) bool {
			switch called(n) {
			case "os.Exit":
				if !mayExit {
					t.Errorf("%s:%d: os.Exit belongs to main packages: return an error", rel, set.Position(n.Pos()).Line)
				}
			case "time.Sleep":
				if test {
					t.Errorf("%s:%d: a test waits for events, or in testing/synctest: never time.Sleep", rel, set.Position(n.Pos()).Line)
				}
			}
			return true
		})
	}
}

// isProgram reports whether a test file has a TestMain or an init: it may be
// started again as another program.
func isProgram(f *ast.File) bool {
	return slices.ContainsFunc(f.Decls, func(d ast.Decl) bool {
		fn, ok := d.(*ast.FuncDecl)
		return ok && (fn.Name.Name == "TestMain" || fn.Name.Name == "init")
	})
}

// called returns "package.Name" of a selector, or "".
func called(n ast.Node) string {
	s, ok := n.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := s.X.(*ast.Ident); ok {
		return pkg.Name + "." + s.Sel.Name
	}
	return ""
}

// mayLog are the places where libcontainer's logging, which is logrus's, is set
// up or asked.
var mayLog = regexp.MustCompile(`^(cmd/|runtime/process\.go$)`)

func checkImport(t *testing.T, file, path string, as *ast.Ident) {
	t.Helper()
	switch path {
	case "github.com/opencontainers/runtime-spec/specs-go":
		if as == nil || as.Name != "oci" {
			t.Errorf("%s: import runtime-spec as oci: specs is a package of ours", file)
		}
	case "github.com/sirupsen/logrus":
		if !mayLog.MatchString(file) {
			t.Errorf("%s: logrus is for main packages; return an error", file)
		}
	case "nemoclaw/runtime":
		if as != nil {
			t.Errorf("%s: our runtime has its own name; the standard one is goruntime where both are needed", file)
		}
	}
}

// unfinished are words that say that something is not done, and words of the
// places where it was made. They are taken apart so that this file has none.
var unfinished = regexp.MustCompile(`\b(` + "TO" + `DO|` + "FIX" + `ME|X` + `XX)\b|` + "/wo" + `rk/(main|shared)`)

func TestNothingIsLeftUndone(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", ".cache", "bin"}, d.Name()) {
			return filepath.SkipDir
		}
		if d.IsDir() || !slices.Contains([]string{".go", ".c", ".s", ".md", ".yaml", ".sh", ""}, filepath.Ext(path)) || !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := unfinished.FindString(line); found != "" {
				rel, _ := filepath.Rel(root, path)
				t.Errorf("%s:%d: %s", rel, i+1, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
