package engines

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// trustingWorld are flags of docker run that make programs trust the world's
// certificates.
func trustingWorld(t *testing.T) []string {
	t.Helper()
	docker(t, "version")
	file := filepath.Join(t.TempDir(), "world.pem")
	if err := os.WriteFile(file, outer.CA(), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"-v", file + ":/usr/share/world.pem:ro",
		"-e", "GIT_SSL_CAINFO=/usr/share/world.pem", "-e", "CURL_CA_BUNDLE=/usr/share/world.pem", "-e", "SSL_CERT_FILE=/usr/share/world.pem"}
}

// id is the whole id of a container.
func id(t testing.TB, name string) string {
	t.Helper()
	return must(t, "inspect", "--format={{.Id}}", name)
}

// ip is a container's address on the default bridge.
func ip(t testing.TB, name string) string {
	t.Helper()
	return must(t, "inspect", "--format={{.NetworkSettings.IPAddress}}", name)
}

// address is where name lies in the world.
func address(t testing.TB, name string) string {
	t.Helper()
	addr, ok := outer.Lookup(name)
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	return addr.String()
}

// nemoclawctl runs the operator's console and returns what it says.
func nemoclawctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(installed(), "nemoclawctl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nemoclawctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}
