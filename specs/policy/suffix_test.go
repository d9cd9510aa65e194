package policy

import (
	"go/ast"
	goparser "go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"
)

// TestOpenBelow: strangers can have names below these, or for "**." below a
// part of them.
func TestOpenBelow(t *testing.T) {
	for _, c := range []struct {
		w          wildcard
		name, want string
	}{
		{oneLabel, "com", "com"},
		{subdomain, "co.uk", "co.uk"},
		{oneLabel, "github.io", "github.io"},
		{oneLabel, "kawasaki.jp", "kawasaki.jp"}, // each label below it is public
		{oneLabel, "x.kawasaki.jp", "x.kawasaki.jp"},
		{oneLabel, "city.kawasaki.jp", ""}, // but for this one
		{oneLabel, "internal", "internal"}, // not on the list; still a top level domain
		{oneLabel, "corp.internal", ""},
		{subdomain, "svc.cluster.local", ""},
		{oneLabel, "github.com", ""},
		{subdomain, "example.co.uk", ""},
		{subdomain, "alice.github.io", ""},
		{oneLabel, "amazonaws.com", ""}, // one label: the services, not what people keep there
		{subdomain, "s3.amazonaws.com", "s3.amazonaws.com"},
	} {
		if got := openBelow(c.w, c.name); got != c.want {
			t.Errorf("%s%s: got %q, want %q", c.w, c.name, got, c.want)
		}
	}
	if got := openBelow(subdomain, "amazonaws.com"); !strings.HasSuffix(got, ".amazonaws.com") {
		t.Errorf("**.amazonaws.com: got %q", got)
	}
}

// TestOpenBelowAgrees: for each line of the list, its parents, a child and a
// grandchild, the answer for one label is that of the library.
func TestOpenBelowAgrees(t *testing.T) {
	isSuffix := func(name string) bool {
		suffix, _ := publicsuffix.PublicSuffix(name)
		return suffix == name
	}
	for _, line := range strings.Split(strings.TrimSpace(suffixes), "\n")[1:] {
		labels := strings.Split(strings.NewReplacer("*", "any", "!", "").Replace(line), ".")
		slices.Reverse(labels)
		name := strings.Join(labels, ".")
		names := []string{"child." + name, "grand.child." + name}
		for more := true; more; _, name, more = strings.Cut(name, ".") {
			names = append(names, name)
		}
		for _, name := range names {
			want := isSuffix(name) || isSuffix("any."+name)
			if got := openBelow(oneLabel, name) != ""; got != want {
				t.Errorf("%s: got %v, the library says %v", name, got, want)
			}
		}
	}
}

// TestSuffixesAreTheLibrarys: the file holds the list of the version of
// golang.org/x/net in go.mod, all of it. With -update it is written.
func TestSuffixesAreTheLibrarys(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/net").Output()
	table := filepath.Join(strings.TrimSpace(string(dir)), "publicsuffix", "table_test.go")
	if err != nil || len(dir) < 2 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cannot find the source of golang.org/x/net: %v", err)
		}
		t.Skipf("needs the source of golang.org/x/net: %v", err)
	}
	lines := suffixRules(t, table)
	slices.Sort(lines)
	want := "# The Public Suffix List (publicsuffix.org), Mozilla Public License 2.0; labels in reverse\n" +
		strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile("suffixes.txt", []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
	} else if suffixes != want {
		t.Error("suffixes.txt is not the library's list; run go test -update")
	}
}

// suffixRules reads the list from the array of strings named rules, with the
// labels in reverse.
func suffixRules(t *testing.T, file string) []string {
	f, err := goparser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range f.Scope.Lookup("rules").Decl.(*ast.ValueSpec).Values[0].(*ast.CompositeLit).Elts {
		rule, err := strconv.Unquote(e.(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		except := strings.HasPrefix(rule, "!")
		labels := strings.Split(strings.TrimPrefix(rule, "!"), ".")
		if except {
			labels[0] = "!" + labels[0]
		}
		slices.Reverse(labels)
		lines = append(lines, strings.Join(labels, "."))
	}
	return lines
}
