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
	// As far as a create comes before it stores the Sandbox.
	if _, err := control.NewLauncher(left); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{control.CgroupsFile, resolvConf, ".new-123"} {
		if err := os.WriteFile(filepath.Join(left, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// libcontainer's, of a container whose id is "web.12345678".
	namesake := filepath.Join(runDir, "web.12345678")
	if err := os.Mkdir(namesake, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(namesake, "state.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	keep = append(keep, filepath.Base(namesake))
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
