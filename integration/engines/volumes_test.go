package engines

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Volumes are granted as docker mounts them.
func TestVolumes(t *testing.T) {
	docker(t, "version")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "of the host\n")
	must(t, "volume", "create", "kept")
	t.Cleanup(func() { docker(t, "volume", "rm", "-f", "kept") })
	for _, c := range []struct {
		name   string
		mount  string
		script string
		says   string
	}{
		{"read-write", dir + ":/data", "cat /data/file; echo of the sandbox > /data/new; cat /data/new", "of the host\nof the sandbox"},
		{"what was written is there", dir + ":/data", "cat /data/new", "of the sandbox"},
		{"read-only", dir + ":/data:ro", "cat /data/file; touch /data/other 2>&1", "of the host\ntouch: /data/other: Read-only file system"},
		{"one file", dir + "/file:/data:ro", "cat /data", "of the host"},
		{"a volume of docker's", "kept:/data", "echo kept > /data/file; cat /data/file", "kept"},
		{"and again", "kept:/data", "cat /data/file", "kept"},
		{"over what the policy hides", dir + ":/root", "cat /root/file", "of the host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := docker(t, "run", "--rm", "--runtime=nemoclaw", "-v", c.mount, "busybox", "sh", "-c", c.script)
			if got := strings.TrimSpace(s.out); got != c.says {
				t.Errorf("%v\nwant %q", s, c.says)
			}
		})
	}
}

// Volumes that would give the host away are refused, and docker shows what to
// write into the policy.
func TestGuardedVolumes(t *testing.T) {
	docker(t, "version")
	keys := filepath.Join(t.TempDir(), ".ssh")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, source string }{
		{"docker's socket", "/run/docker.sock"},
		{"the host's files", "/etc"},
		{"all of them", "/"},
		{"keys", keys},
		{"nemoclaw's state", "/run/nemoclaw"},
		{"docker's directory", "/var/lib/docker"},
		{"a device", "/dev/null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := docker(t, "run", "--rm", "--runtime=nemoclaw", "-v", c.source+":/data:ro", "busybox", "true")
			if s.code != 125 || !strings.Contains(s.err, "cannot confine the container: volumes: "+c.source+": ") || !strings.Contains(s.err, "hint: ") {
				t.Error(s)
			}
		})
	}
	t.Run("the hint", func(t *testing.T) {
		s := docker(t, "run", "--rm", "--runtime=nemoclaw", "-v", keys+":/data:ro", "busybox", "true")
		if want := "add to the policy, under filesystem:  allow_volumes: [" + keys + "]"; !strings.Contains(s.err, want) {
			t.Errorf("%v\nwant %q", s, want)
		}
	})
	t.Run("followed", func(t *testing.T) {
		write(t, filepath.Join(keys, "key"), "a key\n")
		write(t, "/etc/nemoclaw/policies/live.yaml", policy+"filesystem: { allow_volumes: ["+keys+"] }\n")
		if got := must(t, "run", "--rm", "--runtime=nemoclaw-live", "-v", keys+":/data:ro", "busybox", "cat", "/data/key"); got != "a key" {
			t.Errorf("said %q", got)
		}
	})
}

// What a policy keeps apart inside of a volume, docker's user sees kept apart.
func TestKeptApart(t *testing.T) {
	docker(t, "version")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ".git/hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ".env"), "TOKEN=x\n")
	write(t, "/etc/nemoclaw/policies/live.yaml", policy+"filesystem: { read_only: [/work/.git/hooks], deny: [/work/.env], write_execute: deny }\n")
	box := "apart"
	removed(t, box)
	must(t, "run", "-d", "--runtime=nemoclaw-live", "--name="+box, "-v", dir+":/work", "-w", "/work", "busybox", "sh", "-c", idle)
	awaitLine(t, dockerd.client("logs", "-f", box), "ready")
	for _, c := range []struct{ script, says string }{
		{"echo evil > .git/hooks/pre-commit", "Read-only file system"},
		{"mv .git x", "Device or resource busy"},
		{"wc -c < .env", "0"},
		{"cp /bin/busybox prog && ./prog true", "Permission denied"},
		{"echo echo ran > script && sh script", "ran"},
	} {
		s := docker(t, "exec", box, "sh", "-c", c.script)
		if !strings.Contains(s.out+s.err, c.says) {
			t.Errorf("%s: %v\nwant %q", c.script, s, c.says)
		}
	}
}

// A device that docker gives is granted, one that gives away the host refused,
// and of --privileged none.
func TestGivenDevices(t *testing.T) {
	docker(t, "version")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--device=/dev/zero:/dev/mine", "busybox", "sh", "-c", "head -c1 /dev/mine | wc -c"}, "1"},
		{[]string{"--device=/dev/loop-control", "busybox", "true"}, "allow_devices: [/dev/loop-control]"},
		{[]string{"--privileged", "busybox", "sh", "-c", "head -c1 /dev/kmsg"}, "not permitted"},
		{[]string{"--privileged", "busybox", "sh", "-c", "head -c1 /dev/zero | wc -c; echo > /dev/null && tty < /dev/ptmx"}, "1"},
	} {
		s := docker(t, append([]string{"run", "--rm", "--runtime=nemoclaw"}, c.args...)...)
		if !strings.Contains(s.out+s.err, c.says) {
			t.Errorf("%v: %v\nwant %q", c.args, s, c.says)
		}
	}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
