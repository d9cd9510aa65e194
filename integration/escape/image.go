package escape

import "fmt"

// Files are what the attempts look for in an image, by name; a name that ends
// with a slash is a directory. Everybody may read and write everything: what is
// denied, nemoclaw denies. Beside them lie busybox as /bin/busybox, and as what
// Programs says, and the probe.
func Files() map[string]string {
	files := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "etc/group": "root:x:0:\nuser:x:1000:\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/resolv.conf": "",
		"root/secret": secret, "home/user/secret": secret, "home/other/secret": secret, "mnt/secret": secret, "media/secret": secret, "boot/secret": secret, "run/secret": secret,
		"usr/share/text": "public", "opt/app/text": "public", "var/log/own": "public",
		"root/bin/script": "#!/bin/sh\necho ran\n", "bin/probe-too": "", "bin/true-too": "",
		"etc/nemoclaw/other.yaml": "", "root/.ssh/id_ed25519": secret, "home/user/.ssh/id_ed25519": secret, "root/.aws/credentials": secret, "root/.kube/config": secret,
		"root/.docker/config.json": secret, "root/.npmrc": secret, "root/.netrc": secret, "root/.git-credentials": secret, "root/.config/gh/hosts.yml": secret,
		"root/.bash_history": secret, "run/secrets/kubernetes.io/serviceaccount/token": secret, "run/secrets/password": secret,
	}
	for _, dir := range []string{"proc", "sys", "dev", "var/log/nemoclaw", "opt/app/.git/hooks", "etc/profile.d", "etc/ld.so.conf.d", "usr/local/bin", "usr/lib/python3",
		"usr/lib/node_modules", "etc/cron.d", "var/spool/cron", "etc/systemd/system", "etc/init.d", "etc/sudoers.d", "etc/ssl/certs", "tmp", "root/secrets"} {
		files[dir+"/"] = ""
	}
	for n := range Count() {
		files[fmt.Sprintf("%s/%d", Secrets[1:], n)] = secret
		files[fmt.Sprintf("%s/%d", Texts[1:], n)] = "public"
		files[fmt.Sprintf("%s/d%d/", Texts[1:], n)] = ""
	}
	return files
}

const secret = "stolen"

// Links are the image's symbolic links.
var Links = map[string]string{"work": "/root", "everything": "/"}

// Programs are names of busybox, which goes by its name.
var Programs = []string{"bin/busybox", "bin/sh", "bin/cat", "bin/echo", "bin/true", "bin/sleep", "bin/ls", "root/bin/echo", "bin/suid/id"}

// Probes are names of the probe, beside /bin/probe.
var Probes = []string{"root/bin/tool"}

// Setuid is the program that would make its user root.
const Setuid = "bin/suid/id"

// Each calls do for every attempt with its number.
func Each(do func(n int, g Group, a Attempt)) {
	n := 0
	for _, g := range Groups {
		for _, a := range g.Attempts {
			do(n, g, a)
			n++
		}
	}
}

// Count is how many attempts there are.
func Count() int {
	n := 0
	for _, g := range Groups {
		n += len(g.Attempts)
	}
	return n
}
