package integration

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
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

// The README's policy is a policy, and the fault that it shows is what check
// says.
func TestTheReadmeIsTrue(t *testing.T) {
	nemoclaw := program(t, "nemoclaw")
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(begin string) string {
		_, after, ok := strings.Cut(string(text), "```"+begin)
		body, _, closed := strings.Cut(after, "\n```")
		if !ok || !closed {
			t.Fatalf("the README has no block that begins %q", begin)
		}
		return body + "\n"
	}
	good := block("yaml\n")
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.yaml")
	check := func(src string) string {
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(nemoclaw, "check", "policy.yaml")
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput() // what it says tells how it ended
		return string(out)
	}
	if out := check(good); !strings.HasPrefix(out, "policy.yaml is a valid policy\n") {
		t.Errorf("the README's policy:\n%s", out)
	}
	faulty := strings.Replace(good, "port: 443", "prot: 443", 1)
	faulty = strings.ReplaceAll(faulty, "            # Claude API", "")
	want := strings.TrimPrefix(block("\nnemoclaw: cannot use"), "\n")
	shown := "nemoclaw: cannot use" + want
	out := check(faulty)
	for _, line := range strings.Split(strings.TrimSpace(shown), "\n") {
		if !strings.Contains(out, line) {
			t.Errorf("the README shows %q; check says\n%s", line, out)
		}
	}
	for _, make := range []string{"make demo", "make test"} {
		if !strings.Contains(block("sh\n"), make) {
			t.Errorf("the README does not begin with %q", make)
		}
	}
}
