package engines

import (
	"strings"
	"testing"
)

// What Docker makes of a sandbox, with its layers of images, its volumes and
// networks, is proven as any other, and what joined it by exec with it.
func TestStatus(t *testing.T) {
	must(t, "network", "create", "proven")
	t.Cleanup(func() { docker(t, "network", "rm", "proven") })
	for _, c := range []struct {
		name string
		args []string
	}{
		{"plain", []string{"busybox"}},
		{"user", []string{"--user=1000:1000", "--cap-drop=ALL", "busybox"}},
		{"privileged", []string{"--privileged", "busybox"}},
		{"volumes", []string{"-v=/var/www", "--tmpfs=/scratch", "-v=proven:/data:ro", "busybox"}},
		{"read-only", []string{"--read-only", "busybox"}},
		{"published", []string{"-p=8080", "--network=proven", "busybox"}},
		{"offline", []string{"--network=none", "busybox"}},
		{"processes", []string{"--pid=host", "busybox"}},
		{"mate", []string{"--network=container:proven-plain", "busybox"}},
	} {
		box := started(t, "proven-"+c.name, append(c.args, "sh", "-c", idle)...)
		must(t, "exec", "-d", box, "sleep", "1000")
		t.Run(c.name, func(t *testing.T) {
			said := nemoclawctl(t, "status", id(t, box)) // which fails unless all holds
			for _, layer := range []string{"landlock", "seccomp", "process", "fence", "uplink", "gateway", "policy", "audit", "state"} {
				if !strings.Contains(said, "\n"+layer+": holds\n") {
					t.Errorf("%s is not proven:\n%s", layer, said)
				}
			}
		})
	}
	t.Cleanup(func() { docker(t, "volume", "rm", "proven") })
	if said := nemoclawctl(t, "status"); strings.Count(said, "all: holds") < 9 {
		t.Errorf("status of all:\n%s", said)
	}
}
