package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A log that goes on in other files stays one to whoever reads, follows and
// verifies it, and a file taken out of the middle is missed.
func TestAuditLogRotates(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	b.settings("audit: {max_size: 65536}\n")
	main := b.up()
	older := func() []string {
		files, _ := filepath.Glob(b.path("log/*.jsonl.[0-9]"))
		return files
	}
	for i := 0; len(older()) < 2; i++ {
		if got := main.ask(fmt.Sprintf("dial h%d.evil.example:443", i)); !strings.Contains(got, "RESET") && !strings.Contains(got, "REFUSED") || i == 2000 {
			t.Fatalf("after %d refusals there are %d older files; the last answered %s", i, len(older()), got)
		}
	}
	file := b.auditFile()
	if r := b.ctl("audit", "verify", file); r.code != 0 {
		t.Errorf("verify: %s", r)
	}
	log := b.ctl("log", b.id)
	for _, want := range []string{"sandbox attached", "h0.evil.example:443", "lie in an older file"} {
		if !strings.Contains(log.stdout, want) {
			t.Errorf("the log does not show %q", want)
		}
	}
	if r := b.ctl("status", b.id); r.code != 0 {
		t.Errorf("status: %s", r)
	}
	b.must(os.Rename(file+".2", b.path("taken")))
	if r := b.ctl("audit", "verify", file); r.code != 1 || !strings.Contains(r.String(), "missing before it, with their file") {
		t.Errorf("verify without a file: %s", r)
	}
	b.must(os.Rename(b.path("taken"), file+".2"))
	b.must(os.Truncate(file+".1", 1000))
	if r := b.ctl("audit", "verify", file); r.code != 1 || !strings.Contains(r.String(), file+".1:") {
		t.Errorf("verify with a file cut off: %s", r)
	}
}
