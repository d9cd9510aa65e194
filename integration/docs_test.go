package integration

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// laws is how many laws there are for those who are confined. The tenth, that
// "unconfined" is runc, is for conformance tests.
const laws = 9

// THREAT_MODEL.md promises: each law has a test, by name, and each test that is
// named exists.
func TestTheThreatModelNamesItsTests(t *testing.T) {
	text, err := os.ReadFile("../THREAT_MODEL.md")
	if errors.Is(err, fs.ErrNotExist) {
		lacking(t, "there is no THREAT_MODEL.md")
	}
	if err != nil {
		t.Fatal(err)
	}
	exist := testNames(t)
	named := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(text), -1) {
		named[name] = true
		if !exist[name] {
			t.Errorf("THREAT_MODEL.md names %s, which is no test", name)
		}
	}
	for n := 1; n <= laws; n++ {
		found := false
		for name := range named {
			found = found || regexp.MustCompile(fmt.Sprintf(`^TestLaw%d[A-Z]`, n)).MatchString(name)
		}
		if !found {
			t.Errorf("THREAT_MODEL.md names no test of law %d", n)
		}
	}
}

// testNames are all tests and fuzz targets of the tree.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".cache" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
