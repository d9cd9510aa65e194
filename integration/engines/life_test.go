package engines

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nemoclaw/integration/world"
)

// What docker does to a running container works, and the container is a
// sandbox again whenever it runs again.
func TestLife(t *testing.T) {
	box := started(t, "life", "-p=8090:80", "busybox", "sh", "-c", serve)
	confined := func(t *testing.T) {
		t.Helper()
		for _, c := range []struct{ script, says string }{
			{"cat /root/secret || echo refused", "refused"},
			{"wget -qO- http://" + plain + "/hello", strings.TrimSpace(theirs)},
			{"wget -qO- http://" + unlisted + "/hello || echo refused", "refused"},
		} {
			if got := must(t, "exec", box, "sh", "-c", c.script); got != c.says {
				t.Errorf("%s: said %q", c.script, got)
			}
		}
		page, err := get(outer.Dial, world.UplinkAddr.String()+":8090")
		if !strings.HasSuffix(page, "a page\n") {
			t.Errorf("its port: %q, %v", page, err)
		}
	}
	again := func(t *testing.T, how ...string) {
		t.Helper()
		since := must(t, "info", "--format={{.SystemTime}}")
		must(t, how...)
		awaitLine(t, dockerd.client("logs", "-f", "--since="+since, box), "ready")
		confined(t)
	}
	for _, step := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"running", confined},
		{"paused, and on again", func(t *testing.T) {
			must(t, "pause", box)
			if s := docker(t, "exec", box, "true"); s.code == 0 {
				t.Errorf("exec in a paused container: %v", s)
			}
			must(t, "unpause", box)
			confined(t)
		}},
		{"less memory", func(t *testing.T) {
			must(t, "update", "--memory=64m", "--memory-swap=64m", box)
			if got := must(t, "exec", box, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"); got != "67108864" {
				t.Errorf("the limit is %s", got)
			}
		}},
		{"top, stats, cp, diff", func(t *testing.T) {
			if got := must(t, "top", box); !strings.Contains(got, "httpd") {
				t.Errorf("top: %s", got)
			}
			if got := must(t, "stats", "--no-stream", "--format={{.PIDs}}", box); got == "0" || got == "--" {
				t.Errorf("stats: %s processes", got)
			}
			must(t, "cp", box+":/var/www/index.html", filepath.Join(t.TempDir(), "page"))
			must(t, "diff", box)
		}},
		{"stopped by its own will", func(t *testing.T) {
			must(t, "stop", "--time=20", box)
			if got := must(t, "inspect", "--format={{.State.ExitCode}}", box); got != "0" {
				t.Errorf("exit code %s", got)
			}
			if got := must(t, "logs", "--tail=1", box); got != "asked to end" {
				t.Errorf("its last words were %q", got)
			}
		}},
		{"started again", func(t *testing.T) { again(t, "start", box) }},
		{"restarted", func(t *testing.T) { again(t, "restart", box) }},
		{"killed", func(t *testing.T) {
			must(t, "kill", box)
			if got := must(t, "wait", box); got != "137" {
				t.Errorf("exit code %s", got)
			}
		}},
		{"started once more", func(t *testing.T) { again(t, "start", box) }},
		{"renamed", func(t *testing.T) {
			must(t, "rename", box, "afterlife")
			must(t, "rename", "afterlife", box)
		}},
	} {
		if !t.Run(step.name, step.do) {
			break
		}
	}
}

// After docker rm there is nothing left of a sandbox but its audit log.
func TestNothingIsLeft(t *testing.T) {
	docker(t, "version")
	for _, c := range []struct {
		name string
		end  func(t *testing.T, box string)
	}{
		{"stop, rm", func(t *testing.T, box string) { must(t, "stop", box); must(t, "rm", box) }},
		{"rm -f", func(t *testing.T, box string) { must(t, "rm", "-f", box) }},
		{"killed, rm", func(t *testing.T, box string) { must(t, "kill", box); must(t, "wait", box); must(t, "rm", box) }},
		{"a network connected, rm -f", func(t *testing.T, box string) {
			must(t, "network", "create", "brief")
			must(t, "network", "connect", "brief", box)
			must(t, "rm", "-f", box)
			must(t, "network", "rm", "brief")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := survey(t)
			box := started(t, "short", "-p=8100:80", "busybox", "sh", "-c", serve)
			of := id(t, box)
			must(t, "exec", box, "wget", "-qO-", "http://"+plain+"/hello")
			c.end(t, box)
			for what, now := range survey(t) {
				for _, thing := range now {
					if !slices.Contains(before[what], thing) {
						t.Errorf("%s left behind: %s", what, thing)
					}
				}
			}
			logs, err := filepath.Glob("/var/log/nemoclaw/" + of + ".*.jsonl")
			if err != nil || len(logs) != 1 {
				t.Errorf("audit logs: %q, %v", logs, err)
			}
		})
	}
	t.Run("a create that is refused", func(t *testing.T) {
		before := survey(t)
		for _, args := range [][]string{{"-v", "/etc:/data", "busybox", "true"}, {"busybox", "no-such-program"}, {"busybox", "/etc/passwd"}} {
			docker(t, append([]string{"run", "--rm", "--runtime=nemoclaw"}, args...)...)
		}
		for what, now := range survey(t) {
			for _, thing := range now {
				if !slices.Contains(before[what], thing) {
					t.Errorf("%s left behind: %s", what, thing)
				}
			}
		}
	})
}

// survey lists what a sandbox has on its host.
func survey(t *testing.T) map[string][]string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{"process": leftovers("dockerd", "containerd")}
	for _, l := range links {
		if !strings.HasPrefix(l.Name, "br-") {
			found["interface"] = append(found["interface"], l.Name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		found["mount"] = append(found["mount"], strings.Fields(line)[4])
	}
	for what, pattern := range map[string]string{
		"state": "/run/nemoclaw/*", "libcontainer's state": "/run/docker/runtime-*/moby/*",
		"cgroup": "/sys/fs/cgroup/*/" + os.Getenv(cgroupEnv) + "/*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if st, err := os.Stat(p); err == nil && (st.IsDir() || what != "cgroup") {
				found[what] = append(found[what], p)
			}
		}
	}
	for dir := range gatewayCgroups() {
		found["gateway's cgroup"] = append(found["gateway's cgroup"], dir)
	}
	return found
}

// Two sandboxes at once do not meet.
func TestTwoAtOnce(t *testing.T) {
	docker(t, "version")
	for _, name := range []string{"one", "other"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := started(t, name, "busybox", "sh", "-c", idle)
			for range 3 {
				if got := must(t, "exec", box, "wget", "-qO-", "http://"+plain+"/hello"); got+"\n" != theirs {
					t.Errorf("said %q", got)
				}
			}
			if list := nemoclawctl(t, "list"); !strings.Contains(list, id(t, box)[:12]) {
				t.Errorf("not in the list:\n%s", list)
			}
		})
	}
}

// What docker run can give away, nemoclaw does not pass on.
func TestOptionsThatGiveTheHostAway(t *testing.T) {
	docker(t, "version")
	const status = `grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp_filters):' /proc/self/status`
	const tight = "CapEff:\t00000000a00005fb\nCapBnd:\t00000000a00005fb\nNoNewPrivs:\t1\nSeccomp_filters:\t2"
	for _, c := range []struct {
		name   string
		flags  string
		script string
		says   string
	}{
		{"--privileged: capabilities, system calls", "--privileged", status, tight},
		{"--privileged: mounts", "--privileged", "mount -t tmpfs x /tmp 2>/dev/null || echo refused", "refused"},
		{"--privileged: the kernel's switches", "--privileged", "echo x 2>/dev/null > /proc/sysrq-trigger || echo refused", "refused"},
		{"--privileged: devices", "--privileged", "for d in /dev/vda /dev/sda /dev/kmsg /dev/mem; do head -c1 $d 2>/dev/null; done; echo", ""},
		{"--cap-add", "--cap-add=SYS_ADMIN --cap-add=NET_ADMIN --cap-add=NET_RAW", status, tight},
		{"--cap-drop", "--cap-drop=ALL", status, strings.ReplaceAll(tight, "a00005fb", "00000000")},
		{"seccomp=unconfined", "--security-opt=seccomp=unconfined", status, tight},
		{"--pid=host: signals", "--pid=host", fmt.Sprintf("kill -0 %d 2>/dev/null || echo refused", os.Getpid()), "refused"},
		{"--pid=host: other programs' files", "--pid=host", fmt.Sprintf("ls /proc/%d/root/ >/dev/null 2>&1 || echo refused", os.Getpid()), "refused"},
		{"--ipc=host: refused", "--ipc=host", "echo runs", ""},
		{"--uts=host", "--uts=host", "hostname other 2>/dev/null || echo refused", "refused"},
		{"--cgroupns=private", "--cgroupns=private", "echo runs", "runs"},
		{"--device: refused", "--device=/dev/fuse", "echo runs", ""},
		{"--sysctl", "--sysctl=net.ipv4.ip_forward=1", "wget -qO- http://" + unlisted + "/hello 2>&1", "wget: server returned error: HTTP/1.1 403 Forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"run", "--rm", "--runtime=nemoclaw"}, strings.Fields(c.flags)...)
			s := docker(t, append(args, "busybox", "sh", "-c", c.script)...)
			if got := strings.TrimSuffix(s.out, "\n"); got != c.says {
				t.Errorf("%v\nwant %q", s, c.says)
			}
		})
	}
}

// A health check is an exec, under the same policy.
func TestHealthCheck(t *testing.T) {
	docker(t, "version")
	for _, c := range []struct{ check, health string }{
		{"true", "healthy"},
		{"cat /root/secret", "unhealthy"},
	} {
		t.Run(c.check, func(t *testing.T) {
			removed(t, "patient")
			since := must(t, "info", "--format={{.SystemTime}}")
			must(t, "run", "-d", "--name=patient", "--runtime=nemoclaw", "--health-cmd="+c.check, "--health-interval=100ms", "--health-retries=1", "busybox", "sh", "-c", idle)
			awaitLine(t, dockerd.client("events", "--since="+since, "--filter=container=patient", "--filter=event=health_status"), "health_status: "+c.health)
		})
	}
}

// A policy that cannot be used is docker's error, never a container.
func TestPolicyThatIsNotThere(t *testing.T) {
	s := docker(t, "run", "--rm", "--runtime=nemoclaw-absent", "busybox", "true")
	if s.code != 125 || !strings.Contains(s.err, "/etc/nemoclaw/policies/absent.yaml: there is no such policy") {
		t.Error(s)
	}
}

// The operator changes what a running sandbox may reach: by the file, and by a
// decision about one host.
func TestPolicyChangesWhileItRuns(t *testing.T) {
	docker(t, "version")
	const file = "/etc/nemoclaw/policies/live.yaml"
	write(t, file, policy)
	box := started(t, "live", "--runtime=nemoclaw-live", "busybox", "sh", "-c", idle)
	reach := func() string {
		return must(t, "exec", box, "sh", "-c", "wget -qO- http://"+later+"/hello 2>&1 | tail -1")
	}
	if got := reach(); strings.Contains(got, "hello") {
		t.Fatalf("before: %s", got)
	}
	write(t, file, policy+"    - {host: "+later+", port: 80, allow_private: [203.0.113.0/24]}\n")
	nemoclawctl(t, "reload", id(t, box))
	if got := reach(); got+"\n" != theirs {
		t.Errorf("after the rule was added: %s", got)
	}
	write(t, file, policy+"  nonsense: [\n")
	if got := reach(); got+"\n" != theirs {
		t.Errorf("after a bad save the last good policy holds: %s", got)
	}
	write(t, file, policy)
	nemoclawctl(t, "reload", id(t, box))
	if got := reach(); strings.Contains(got, "hello") {
		t.Errorf("after it was taken out: %s", got)
	}
	nemoclawctl(t, "approve", id(t, box), later+":80")
	if got := reach(); !strings.Contains(got, "403") {
		t.Errorf("an approval does not open private addresses: %s", got)
	}
}
