package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nemoclaw/egress/control"
	"nemoclaw/specs/settings"
)

// The sweep takes what a container has left, and nothing else that lies beside
// it: libcontainer keeps its state of every container there, unless an engine
// says otherwise.
func TestSweepLeavesOthersAlone(t *testing.T) {
	runDir := t.TempDir()
	left := control.Dir(runDir, "/run/engine", "web")
	keep := []string{"containers/web", "web", "web.old", "web.12345678.bak", "web.nothexad", ".12345678"}
	for _, dir := range append([]string{left}, keep...) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(runDir, dir)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r := &Runtime{Settings: &settings.Settings{RunDir: runDir}}
	gone, err := r.Sweep()
	if err != nil || !slices.Equal(gone, []string{filepath.Base(left)}) {
		t.Errorf("swept %q, %v", gone, err)
	}
	for _, dir := range keep {
		if _, err := os.Stat(filepath.Join(runDir, dir)); err != nil {
			t.Errorf("%s is gone: %v", dir, err)
		}
	}
}
