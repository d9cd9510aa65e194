package control

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A launcher's name cannot be guessed from what everybody may know of a container,
// nor read by anybody but root, and is the same until the container's end.
func TestLauncherNameIsASecret(t *testing.T) {
	seen := map[string]bool{}
	for range 10 {
		dir := filepath.Join(t.TempDir(), "web.01234567")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if name, err := LauncherName(dir); err == nil {
			t.Errorf("a container without a launcher has the name %q", name)
		}
		name, err := NewLauncher(dir)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := LauncherName(dir); again != name || err != nil {
			t.Errorf("it was %q and is %q, %v", name, again, err)
		}
		if len(name) != len(launcherPrefix)+32 || !strings.HasPrefix(name, launcherPrefix) || seen[name] {
			t.Errorf("the name is %q", name)
		}
		seen[name] = true
		if st, err := os.Stat(filepath.Join(dir, LauncherFile)); err != nil || st.Mode() != fs.FileMode(0o600) {
			t.Errorf("it is kept in %v, %v", st, err)
		}
	}
}
