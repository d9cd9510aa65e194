package engines

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// With dockerd's userns-remap the container's root is nobody on the host, and
// everything else is as ever.
func TestUserNamespace(t *testing.T) {
	docker(t, "version")
	for file, line := range map[string]string{
		"/etc/passwd": "remapped:x:990:990::/:/bin/false", "/etc/group": "remapped:x:990:",
		"/etc/subuid": "remapped:100000:65536", "/etc/subgid": "remapped:100000:65536",
	} {
		appendLine(t, file, line)
	}
	remapped, err := startDocker("remapped", map[string]any{"userns-remap": "remapped", "bip": "172.30.9.1/24"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remapped.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := remapped.load("busybox"); err != nil {
		t.Fatal(err)
	}
	t.Run("proven", func(t *testing.T) {
		box := strings.TrimSpace(remapped.docker(t, "run", "-d", "--runtime=nemoclaw", "busybox", "sh", "-c", idle).out)
		t.Cleanup(func() { remapped.docker(t, "rm", "-f", box) })
		if said := nemoclawctl(t, "status", box); strings.Count(said, ": holds\n") != 9 {
			t.Errorf("not every layer holds:\n%s", said)
		}
	})
	for _, c := range []struct{ name, script, says string }{
		{"root is somebody else", "awk '{print $2}' /proc/self/uid_map", "100000\n"},
		{"layer 1", "cat /root/secret 2>/dev/null || echo refused; touch /sandbox/file && echo written", "refused\nwritten\n"},
		{"layer 2", "grep Seccomp_filters /proc/self/status", "Seccomp_filters:\t2\n"},
		{"layers 3 and 4", "wget -qO- http://" + plain + "/hello; wget -qO- http://" + unlisted + "/hello 2>/dev/null || echo refused", theirs + "refused\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if s := remapped.docker(t, "run", "--rm", "--runtime=nemoclaw", "busybox", "sh", "-c", c.script); s.out != c.says {
				t.Errorf("%v\nwant %q", s, c.says)
			}
		})
	}
}

func appendLine(t *testing.T, file, line string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, line); err != nil {
		t.Fatal(err)
	}
}
