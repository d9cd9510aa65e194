package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// source is a file with entries, and the tests that must miss each of them.
type source struct {
	file  string
	decls []string // variables, constants and functions whose entries are taken out
	tests []string // packages
}

// sources are the lists that confine: what is in them is denied, refused, kept
// out of sight, or granted and no more than that.
var sources = []source{
	{"specs/seccomp/denials.go", []string{"cloneNew", "Groups", "OthersLimits", "WriteExecute", "execByDescriptor", "socketDenials", "workerGroup"}, []string{"./specs/seccomp"}},
	{"specs/seccomp/worker.go", []string{"takenOver"}, []string{"./specs/seccomp"}},
	{"specs/seccomp/profile.go", []string{"launcherCalls"}, []string{"./specs/seccomp"}},
	{"specs/seccomp/filter.go", []string{"needed"}, []string{"./specs/seccomp"}},
	{"specs/landlock/access.go", []string{"ReadOnly", "ReadWrite", "Device", "Terminals", "forFiles", "abis", "accessNames"}, []string{"./specs/landlock"}},
	{"specs/policy/defaults.go", []string{"EssentialReadOnly", "EssentialReadWrite", "DefaultReadOnly", "DefaultReadWrite", "DefaultEgress"}, []string{"./specs/policy"}},
	{"specs/edit.go", []string{"Ceiling", "kernelFiles"}, []string{"./specs"}},
	{"specs/rules.go", []string{"engineFiles", "systemTrees", "systemDirs", "private"}, []string{"./specs"}},
	{"specs/device.go", []string{"graphics", "hazards", "byName"}, []string{"./specs"}},
	{"specs/refuse.go", []string{"Refuse", "kernelMounts", "misplaced", "sensitive", "sensitiveTrees", "secretNames", "engineDirs", "handedOut", "ours", "guard"}, []string{"./specs"}},
}

// mutant is a file without one of its entries.
type mutant struct {
	file   string
	decl   string
	line   int
	what   string // the entry's text, cut short
	source []byte
	tests  []string
}

func (m mutant) String() string {
	return fmt.Sprintf("%s:%d: %s without %s", m.file, m.line, m.decl, m.what)
}

// mutants returns every mutant of s. A declaration that is not there any more is
// an error: it would be left out for ever.
func (s source) mutants() ([]mutant, error) {
	text, err := os.ReadFile(filepath.FromSlash(s.file))
	if err != nil {
		return nil, err
	}
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, s.file, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []mutant
	for _, name := range s.decls {
		node := declared(f, name)
		if node == nil {
			return nil, fmt.Errorf("%s declares no %s", s.file, name)
		}
		cuts := entries(node)
		if len(cuts) == 0 {
			return nil, fmt.Errorf("%s: %s has no entries", s.file, name)
		}
		for _, c := range cuts {
			from, to := files.Position(c.from), files.Position(c.to)
			what := text[from.Offset:to.Offset]
			if c.shown != nil {
				what = text[files.Position(c.shown.Pos()).Offset:files.Position(c.shown.End()).Offset]
			}
			out = append(out, mutant{file: s.file, decl: name, line: from.Line, tests: s.tests, what: short(string(what)),
				source: slices.Concat(text[:from.Offset], []byte(c.instead), text[skipComma(text, to.Offset, c.list):])})
		}
	}
	return out, nil
}

// declared returns what name declares at the top level of f, or nil.
func declared(f *ast.File, name string) ast.Node {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.Name == name {
				return d
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok && slices.ContainsFunc(v.Names, func(id *ast.Ident) bool { return id.Name == name }) {
					return v
				}
			}
		}
	}
	return nil
}

// cut is a piece of source that is taken out, or replaced.
type cut struct {
	from, to token.Pos
	instead  string
	list     bool     // with the comma behind it
	shown    ast.Node // where it is not the piece that says what is gone
}

// entries are the elements of lists and tables below n, the names that calls()
// is given, the operands of |, and in functions the refusals.
func entries(n ast.Node) []cut {
	var cuts []cut
	element := func(e ast.Node) { cuts = append(cuts, cut{from: e.Pos(), to: e.End(), list: true}) }
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			switch n.Type.(type) {
			case *ast.ArrayType, *ast.MapType:
				for _, e := range n.Elts {
					element(e)
				}
			}
		case *ast.CallExpr:
			switch name, _ := n.Fun.(*ast.Ident); {
			case name == nil:
			case name.Name == "calls":
				for _, e := range n.Args[1:] {
					element(e)
				}
			case name.Name == "append":
				for _, e := range n.Args[1:] {
					if !isList(e) && !isFaults(n.Args[0]) && n.Ellipsis == token.NoPos {
						element(e)
					}
				}
			case name.Name == "fault": // and what it mentions stays in use
				cuts = append(cuts, cut{from: n.Fun.Pos(), to: n.Fun.End(), instead: "func(string, string, ...any) {}", shown: n})
			}
		case *ast.AssignStmt:
			if call, ok := n.Rhs[0].(*ast.CallExpr); ok && len(call.Args) == 2 && isFaults(n.Lhs[0]) {
				cuts = append(cuts, cut{from: n.Pos(), to: n.End()})
			}
		case *ast.ReturnStmt:
			if len(n.Results) == 1 && isReason(n.Results[0]) {
				cuts = append(cuts, cut{from: n.Pos(), to: n.End()})
			}
		case *ast.BinaryExpr:
			if n.Op == token.OR {
				cuts = append(cuts, cut{from: n.X.End(), to: n.Y.End()}) // the last operand
				if _, deeper := n.X.(*ast.BinaryExpr); !deeper {
					cuts = append(cuts, cut{from: n.X.Pos(), to: n.Y.Pos()}) // and the first
				}
			}
		}
		return true
	})
	return cuts
}

// isList reports whether e calls a function that makes several entries.
func isList(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	name, _ := call.Fun.(*ast.Ident)
	return name != nil && (name.Name == "calls" || name.Name == "socketDenials")
}

func isFaults(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "faults"
}

// isReason reports whether a function gives e as the reason of a refusal: words,
// put together or not.
func isReason(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return err == nil && s != ""
	case *ast.BinaryExpr:
		return e.Op == token.ADD
	case *ast.CallExpr:
		s, ok := e.Fun.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Sprintf"
	}
	return false
}

func skipComma(text []byte, at int, list bool) int {
	if list && at < len(text) && text[at] == ',' {
		return at + 1
	}
	return at
}

func short(s string) string {
	s = strings.Join(strings.Fields(strings.Trim(s, "| ")), " ")
	if len(s) > 90 {
		s = s[:90] + "..."
	}
	return s
}
