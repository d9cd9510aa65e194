package vm

import (
	"strings"
	"testing"
)

// outfit installs nemoclaw in the machine, and gives it a page to serve, a root
// file system and the commands bundle and
// detached. The page, on port 80, and its twin that no
// policy lists, on 81, are all there is outside of a sandbox.
const outfit = `
mkdir -p /usr/local/libexec/nemoclaw/shim /etc/nemoclaw /srv/page
for program in nemoclaw nemoclaw-gateway nemoclawctl containerd-shim-nemoclaw-v1; do cp /nemoclaw/bin/$program /usr/local/bin/; done
ln -sf ../../../bin/nemoclaw /usr/local/libexec/nemoclaw/shim/runc
echo 'a page' >/srv/page/index.html
ip netns add page
ip link add page type veth peer name eth0 netns page
ip addr add 192.0.2.2/24 dev page
ip link set page up
ip -n page addr add 192.0.2.1/24 dev eth0
ip -n page link set eth0 up
for port in 80 81; do nsenter --net=/run/netns/page busybox httpd -p $port -h /srv/page; done
cat >/etc/nemoclaw/policy.yaml <<END
network: {uplink: host}
egress:
  rules:
    - {cidr: 192.0.2.1/32, port: 80, allow_private: [192.0.2.0/24]}
    - {host: page.example, port: 80, allow_private: [192.0.2.0/24]}
END
if [ ! -d /image ]; then
	mkdir -p /image/bin /image/etc /image/root /image/proc /image/sys /image/dev /image/tmp /image/srv
	cp /bin/busybox /image/bin/
	for name in $(busybox --list); do [ $name = busybox ] || ln -s busybox /image/bin/$name; done
	echo stolen >/image/root/secret
	echo root:x:0:0::/root:/bin/sh >/image/etc/passwd
fi
cat >/usr/local/bin/bundle <<'END'
#!/bin/sh
# bundle DIR SCRIPT: a bundle whose program is a shell that runs SCRIPT.
set -e
rm -rf "$1" && mkdir -p "$1"
cp -r /image "$1/rootfs"
nemoclaw spec --bundle "$1"
printf %s "$2" >"$1/rootfs/srv/script"
sed -i 's/"terminal": true/"terminal": false/; s|"sh"$|"sh", "/srv/script"|' "$1/config.json"
END
cat >/usr/local/bin/detached <<'END'
#!/bin/sh
# detached COMMAND: whose container keeps its streams open.
"$@" </dev/null >/said 2>&1 || { code=$?; cat /said; exit $code; }
END
chmod 755 /usr/local/bin/bundle /usr/local/bin/detached
`

// steps runs one script after another, each of which must say so.
func (m *machine) steps(t *testing.T, steps []step) {
	t.Helper()
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			m := *m
			m.t = t
			said, code := m.run(s.script)
			if code != s.code || !strings.Contains(said, s.says) {
				t.Errorf("%s\nexit status %d, and it says:\n%s\nwant exit status %d and %q", s.script, code, said, s.code, s.says)
			}
		})
	}
}

type step struct {
	name, script string
	code         int
	says         string
}

// A kernel that is too old is refused, with what it lacks, and only a policy
// that says so runs on it.
func TestOldKernel(t *testing.T) {
	m := boot(t, "old", newDisk(t))
	m.must(outfit)
	m.steps(t, []step{
		{"doctor", "nemoclaw doctor", 1, "ABI 2, and 3 is needed (Linux 6.2)"},
		{"refused", "bundle /b 'echo ran' && nemoclaw run --bundle /b old", 1, "landlock: this kernel has ABI 2, the policy needs 3 (Linux 6.2)"},
		{"nothing of it ran", "nemoclaw run --bundle /b old 2>&1 | grep -x ran", 1, ""},
		{"best effort", "echo 'landlock: {compatibility: best_effort}' >>/etc/nemoclaw/policy.yaml; nemoclaw run --bundle /b old", 0, "ran"},
		{"which the log tells", "cat /var/log/nemoclaw/*.jsonl", 0, "best effort: this kernel has ABI 2"},
		{"and what it still denies", "bundle /b 'cat /root/secret || wget -qO- -T5 http://192.0.2.1:81/ || echo refused'; nemoclaw run --bundle /b old", 0, "refused"},
	})
}

// What a machine that went down left is swept away by the next create, also
// where the directories of sandboxes and containers are on a disk; and the audit
// log of then is whole.
func TestReboot(t *testing.T) {
	d := newDisk(t)
	m := boot(t, "new", d)
	const settings = "mkdir -p /etc/nemoclaw; echo 'run_dir: /var/lib/nemoclaw-run' >/etc/nemoclaw/config.yaml\n"
	const up = "detached nemoclaw --root /var/lib/containers-of-a-test run --detach --bundle /b "
	m.must(settings + outfit)
	m.must("bundle /b 'while wget -qO- http://192.0.2.1/; do sleep 1; done'; " + up + " before")
	m.must("nemoclawctl status before && ls /var/lib/nemoclaw-run >/seen && sync")
	m.tell("reboot -f")
	m.ended()

	m = boot(t, "new", d)
	m.must(outfit)
	m.steps(t, []step{
		{"they are still there", "ls /var/lib/nemoclaw-run | diff - /seen && ls /var/lib/containers-of-a-test", 0, "before"},
		{"its log is whole up to then", "nemoclawctl audit verify /var/log/nemoclaw/*.jsonl", 0, ""},
		{"it does not run", "nemoclaw --root /var/lib/containers-of-a-test state before", 0, `"status": "stopped"`},
		{"it cannot be executed in", "nemoclaw --root /var/lib/containers-of-a-test exec before true", 255, ""},
		{"its engine deletes it", "nemoclaw --root /var/lib/containers-of-a-test delete before", 0, ""},
		{"another begins", up + "after && nemoclawctl status after", 0, "after"},
		{"and is alone", "cat /seen; ls /var/lib/nemoclaw-run; ls /var/lib/nemoclaw-run | grep before", 1, ""},
		{"it ends", "nemoclaw --root /var/lib/containers-of-a-test delete --force after", 0, ""},
		{"nothing is left", "ls -d /var/lib/nemoclaw-run/?*-* /sys/fs/cgroup/nemoclaw/*", 2, ""},
	})
}

// lines waits until the audit log has more than so many.
func lines(n string) string {
	return "timeout 60 sh -c 'until [ $(cat /var/log/nemoclaw/*.jsonl | wc -l) -gt " + n + " ]; do sleep 1; done'"
}

// When the power goes, no line that stands in the audit log is damaged, and
// verify tells what was lost behind them. When the disk is full, the answer is
// no.
func TestPowerCut(t *testing.T) {
	d := newDisk(t)
	m := boot(t, "new", d)
	m.must(outfit)
	m.must("bundle /b 'while wget -qO- http://192.0.2.1/; do :; done'; detached nemoclaw run --detach --bundle /b cut")
	m.must(lines("100"))
	sure := m.must("sync; cat /var/log/nemoclaw/*.jsonl | wc -l")
	m.must(lines("$((" + sure + " + 20))"))
	m.cut()

	m = boot(t, "new", d)
	m.must(outfit)
	m.steps(t, []step{
		{"what was on the disk is there", "[ $(cat /var/log/nemoclaw/*.jsonl | wc -l) -ge " + sure + " ]", 0, ""},
		{"and as it was written, but for what is cut off its end", "nemoclawctl audit verify /var/log/nemoclaw/*.jsonl 2>&1 | " +
			"grep -v -e 'as they were written' -e 'the last line is unfinished' -e 'are cut off' -e 'cannot trust'", 1, ""},
	})
}

// The audit log's disk is full: the answer is no, until there is room.
func TestFullDisk(t *testing.T) {
	m := boot(t, "new", newDisk(t))
	m.must(outfit)
	m.must("truncate -s 4M /small && mke2fs -q -t ext4 -m 0 /small && mkdir -p /var/log/nemoclaw && mount -o loop /small /var/log/nemoclaw")
	m.steps(t, []step{
		{"it runs", "bundle /b 'sleep 1000000'; detached nemoclaw run --detach --bundle /b full; nemoclaw exec full wget -qO- http://192.0.2.1/", 0, "a page"},
		{"nothing passes", "head -c 4M /dev/zero >/var/log/nemoclaw/fill; nemoclaw exec full sh -c 'while wget -qO- http://192.0.2.1/; do :; done; echo no' | tail -n 1", 0, "no"},
		{"and it is said aloud", "nemoclawctl status full", 3, "no space left on device"},
		{"with room again all is well", "rm /var/log/nemoclaw/fill; nemoclaw exec full wget -qO- http://192.0.2.1/", 0, "a page"},
		{"the chain holds", "nemoclawctl audit verify /var/log/nemoclaw/*.jsonl", 0, ""},
	})
}
