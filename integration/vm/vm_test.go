package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// enabledEnv is set by make test-vm; runEnv chooses among the tests of other
// packages, as go test -run does.
const (
	enabledEnv = "NEMOCLAW_VM"
	runEnv     = "NEMOCLAW_VM_RUN"
)

// tags are those of the Makefile.
const tags = "seccomp,urfave_cli_no_docs,runc_nocriu,netgo,osusergo"

// packages are whose tests another kernel may answer differently.
var packages = []string{"specs/landlock", "hooks", "hooks/witness", "hooks/proof", "runtime", "egress/kaudit", "egress/monitor",
	"egress/worker", "cmd/nemoclaw-gateway", "integration"}

// elsewhere are tests of the tree, and such as compile a program: not the machine's.
const elsewhere = "^Test(WhoMayImportWhom|NothingIsLeftUndone|Demo.*|Clients|Images|Example.*)$"

// prepare fills the cache and lays out the tree, with everything built, as the
// machine shall have it.
var prepare = sync.OnceValues(func() (made struct{ cache, tree string }, err error) {
	repository, err := filepath.Abs("../..")
	if err != nil {
		return made, err
	}
	made.cache, made.tree = filepath.Join(repository, ".cache/vm"), filepath.Join(repository, "bin/vm/tree")
	for _, cmd := range []*exec.Cmd{
		exec.Command("sh", "integration/vm/fetch.sh", made.cache),
		exec.Command("sh", "-ec", `rm -rf "$1"; mkdir -p "$1/bin" "$1/.cache/integration"
			git ls-files -co --exclude-standard | tar -cT - | tar -xC "$1"
			cp bin/nemoclaw bin/nemoclaw-gateway bin/nemoclawctl bin/containerd-shim-nemoclaw-v1 "$1/bin"
			for kept in .cache/integration/runc .cache/integration/squid-*; do [ ! -e "$kept" ] || cp -r "$kept" "$1/.cache/integration"; done`, "sh", made.tree),
		exec.Command("env", "CGO_ENABLED=0", "go", "build", "-o", made.tree+"/bin/probe", "./integration/probe"),
		exec.Command("go", append([]string{"test", "-c", "-tags", tags, "-o", made.tree + "/bin/"}, below(packages)...)...),
	} {
		cmd.Dir = repository
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return made, fmt.Errorf("%s: %w", cmd, err)
		}
	}
	return made, nil
})

func below(packages []string) (paths []string) {
	for _, p := range packages {
		paths = append(paths, "./"+p)
	}
	return paths
}

// need skips what make test-vm does not run, and prepares what it does.
func need(t *testing.T) (cache, tree string) {
	t.Helper()
	if os.Getenv(enabledEnv) == "" {
		t.Skip("make test-vm runs this")
	}
	made, err := prepare()
	if err != nil {
		t.Fatal(err)
	}
	return made.cache, made.tree
}

func cache(t *testing.T) string { dir, _ := need(t); return dir }
func tree(t *testing.T) string  { _, dir := need(t); return dir }

// The tests of other packages hold there as they do here.
func TestPackages(t *testing.T) {
	need(t)
	m := boot(t, "new", newDisk(t))
	for _, p := range packages {
		t.Run(p, func(t *testing.T) { m.test(t, p) })
	}
}

// test runs a package's tests in the machine. Each that failed there fails here,
// and each that was skipped is named.
func (m *machine) test(t *testing.T, p string) {
	m.tell(fmt.Sprintf("cd /nemoclaw/%s && NEMOCLAW_VM=inside NEMOCLAW_TEST_BIN=/nemoclaw/bin /nemoclaw/bin/%s.test -test.v -test.timeout=60m -test.skip='%s' -test.run='%s'",
		p, filepath.Base(p), elsewhere, os.Getenv(runEnv)))
	passed := 0
	var told []string // by the test that runs, its name first
	var failed bool
	settle := func() {
		if failed {
			t.Errorf("%s", strings.Join(told, "\n"))
		}
		told, failed = nil, false
	}
	code := m.answer(func(line string) {
		name, begins := strings.CutPrefix(line, "=== RUN   ")
		if begins = begins && !strings.Contains(name, "/"); begins {
			settle()
		}
		told = append(told, line)
		switch verdict, _, _ := strings.Cut(strings.TrimLeft(line, " "), ": "); verdict {
		case "--- PASS":
			passed++
			if line == strings.TrimLeft(line, " ") {
				t.Log(line)
			}
		case "--- FAIL":
			failed = true
		case "--- SKIP":
			t.Log(strings.Join(told[max(0, len(told)-3):], " "))
		}
	})
	settle()
	if code != 0 && !t.Failed() {
		t.Errorf("exit status %d", code)
	}
	t.Logf("%d passed", passed)
}
