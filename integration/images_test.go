package integration

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An image is a root file system that people use, unchanged, and what they do
// in it: an errand is a program with its arguments, run under the default policy,
// and all that it says.
type image struct {
	name    string
	lay     func(*box) // makes the box's root file system
	path    string     // PATH
	idle    []string   // a program that stays
	errands []errand
}

type errand struct {
	name string
	args []string
	says string
}

// script is an errand for the image's shell, which ends at the first fault.
func script(name, text, says string) errand {
	return errand{name, []string{"/bin/sh", "-ec", text}, says}
}

const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var images = []image{
	{
		name: "scratch", lay: (*box).scratch, idle: []string{"/probe", "serve"},
		errands: []errand{
			{"a static program", []string{"/probe", "read", "/etc/motd"}, "ok hello\n"},
			{"writes where it may", []string{"/probe", "create", "/sandbox/file"}, "ok\n"},
			{"knows its home", []string{"/probe", "env", "HOME"}, "ok /sandbox\n"},
			{"starts another", []string{"/probe", "exec", "/probe", "read", "/etc/motd"}, "ok ok hello\n"},
		},
	}, {
		name: "busybox", lay: (*box).busybox, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("a shell's work", `
				cd; mkdir -p a/b; echo one >a/b/1; echo two >a/2
				find a -type f | sort | xargs cat | tr a-z A-Z
				tar -czf a.tar.gz a; rm -r a; tar -xzf a.tar.gz; wc -l <a/b/1
				(sleep 0; echo from a child) | sed s/child/pipe/
				mkfifo pipe; cat pipe & echo through >pipe; wait
				vi -h 2>&1 | grep -c BusyBox
				rm -r a a.tar.gz pipe`, "TWO\nONE\n1\nfrom a pipe\nthrough\n1\n"),
			script("knows who it is", `test "$(id -u)" = "$(stat -Lc %u /proc/self)"; cd; pwd; echo $HOME; df -P /tmp | wc -l`, "/sandbox\n/sandbox\n2\n"),
			script("a temporary file by mktemp", `f=$(mktemp); echo kept >$f; cat $f; rm $f`, "kept\n"),
		},
	}, {
		name: "an agent in a home", lay: (*box).agent, path: "/root/.local/bin:/home/node/.npm-global/bin:" + usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			{"by its name in the path", []string{"agent", "hello"}, "hello, its data\n"},
			{"from another home in the path", []string{"start"}, "started\n"},
			{"by a script in the top directory", []string{"/entrypoint.sh", "echo", "told"}, "told\n"},
			script("and the rest of the homes", `cat /root/.netrc /home/node/.netrc 2>&1 | grep -c denied; ls /root 2>&1 | grep -c denied`, "2\n1\n"),
		},
	}, {
		name: "alpine", lay: (*box).alpine, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			{"a program that is linked with musl", []string{"/usr/bin/greet"}, "threads 4\nfrom a shell\n127.0.0.1\n"},
			script("a profile", `. /etc/profile; echo $SET; cat /etc/alpine-release; test -r /lib/apk/db/installed && echo apk`, "by the profile\n3.99.0\napk\n"),
		},
	}, {
		name: "python", lay: (*box).debian, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("the standard library", `
				python3 - <<-'end'
				`+python+`
				end`, "[0, 1, 4, 9]\n[(1, 'one')]\nchild\nkept\n8\n"),
			script("venv, and pip of a wheel", `
				cd; rm -rf venv; python3 -m venv venv; . venv/bin/activate
				pip install --quiet --no-index --disable-pip-version-check /opt/input/greet-1.0-py3-none-any.whl
				greet; pip list --disable-pip-version-check 2>/dev/null | grep -o '^greet *1.0' | tr -s ' '
				pip uninstall --quiet --yes greet; deactivate; rm -r venv`, "hello from a wheel\ngreet 1.0\n"),
			script("pip for one user", `
				cd; pip install --quiet --user --no-index --break-system-packages --disable-pip-version-check --root-user-action=ignore --no-warn-script-location /opt/input/greet-1.0-py3-none-any.whl
				.local/bin/greet; pip config set global.timeout 5 >/dev/null; ls .config/pip; rm -r .local .config`, "hello from a wheel\npip.conf\n"),
		},
	}, {
		name: "node", lay: (*box).debian, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("workers, children, files", `
				cd; cat >work.js <<-'end'
				`+javascript+`
				end
				node work.js; rm work.js`, "from a worker\nfrom a child\nseen work.txt\nabc\n"),
			script("npm of a tarball", `
				export npm_config_progress=false NO_COLOR=1; cd; rm -rf project; mkdir project; cd project; npm init -y >/dev/null
				npm install --offline --no-audit --no-fund --loglevel=error /opt/input/greet-1.0.0.tgz >/dev/null
				npm exec --offline greet; node -e 'console.log(require("greet").words)'
				npm pkg set scripts.test='echo tested by $npm_package_name'; npm test --silent
				npm install --offline --global --prefix ~/.npm-global --no-audit --no-fund /opt/input/greet-1.0.0.tgz >/dev/null; ~/.npm-global/bin/greet
				npm config set --location=user fund false; cat ~/.npmrc; cd; rm -rf project .npm .npm-global .npmrc`,
				"hello from a package\nhello\ntested by project\nhello from a package\nfund=false\n"),
		},
	}, {
		name: "git", lay: (*box).debian, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("a repository's life", `
				exec 2>&1; export GIT_PAGER=cat; cd; rm -rf repo side copy .gitconfig; git config --global color.ui false; git config --global user.name Agent; git config --global user.email agent@sandbox.example
				git config --global init.defaultBranch main; git init -q repo; cd repo
				printf '#!/bin/sh\necho by the hook: $(git log -1 --format=%%s)\n' >.git/hooks/post-commit; chmod +x .git/hooks/post-commit
				echo one >file; git add file; git commit -q -m first
				echo two >>file; git status --short; git diff --stat | tail -1; git commit -q -a -m second
				git worktree add -q ../side -b topic HEAD~1; cd ../side; cat file; echo three >new; git add new; git commit -q -m third
				cd ../repo; git merge -q --no-edit topic; git log --format=%s | sort | tr '\n' ' '; echo
				git -c gc.writeCommitGraph=false gc -q; git fsck --no-progress | cat; git clone -q . ../copy; ls -1 ../copy; git stash list | wc -l
				cd; rm -rf repo side copy .gitconfig`,
				"by the hook: first\n M file\n 1 file changed, 1 insertion(+)\nby the hook: second\none\nby the hook: third\nMerge branch 'topic' first second third \nfile\nnew\n0\n"),
			script("a repository in the image that is another's", `
				export GIT_PAGER=cat; cd /opt/input/repo; git -c safe.directory=/opt/input/repo log --format=%s; git -c safe.directory=/opt/input/repo status --short`,
				"in the image\n"),
		},
	}, {
		name: "gcc", lay: (*box).debian, path: usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("compile and run", `
				cd; cat >a.c <<-'end'
				#include <stdio.h>
				#include <pthread.h>
				static void *say(void *s) { puts(s); return 0; }
				int main(void) { pthread_t t; pthread_create(&t, 0, say, "compiled"); return pthread_join(t, 0); }
				end
				gcc -O2 -flto -Wall -o a a.c; ./a; gcc -shared -fPIC -o liba.so a.c; nm -D liba.so | grep -c ' T main'
				gcc -fsanitize=address -o b a.c; ASAN_OPTIONS=detect_leaks=0 ./b; rm a a.c b liba.so`, "compiled\n1\ncompiled\n"),
		},
	}, {
		name: "go", lay: (*box).golang, path: "/usr/local/go/bin:" + usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("build and test", `
				cd; rm -rf mod; mkdir mod; cd mod; export GOCACHE=/cache GOTOOLCHAIN=local GOFLAGS=-mod=mod GOPROXY=off
				go mod init example.org/greet 2>/dev/null
				printf 'package main\n\nimport "os"\n\nfunc words() string { return "built\\n" }\n\nfunc main() { os.Stdout.WriteString(words()) }\n' >main.go
				printf 'package main\n\nimport "testing"\n\nfunc TestWords(t *testing.T) {\n\tif words() != "built\\n" {\n\t\tt.Fail()\n\t}\n}\n' >main_test.go
				go build -o greet .; ./greet; go test . | cut -f1,2; go vet .; cd; rm -r mod`, "built\nok  \texample.org/greet\n"),
		},
	}, {
		name: "java", lay: (*box).debian, path: "/usr/lib/jvm/default-java/bin:" + usualPath, idle: []string{"/bin/sleep", "1000"},
		errands: []errand{
			script("a jar, and a class", `
				cd; java -version 2>&1 | grep -c 'OpenJDK Runtime'
				cat >Greet.java <<-'end'
				public class Greet {
					public static void main(String[] a) throws Exception {
						System.out.println(java.util.stream.IntStream.range(0, 1000).parallel().sum());
						System.out.println(new String(new ProcessBuilder("echo", "child").start().getInputStream().readAllBytes()).trim());
						System.out.println(java.nio.file.Files.createTempFile("a", "b").getParent());
					}
				}
				end
				java -jar /usr/share/java/eclipse-jdt-core.jar -proc:none -17 Greet.java; java Greet; rm Greet.java Greet.class`, "1\n499500\nchild\n/tmp\n"),
		},
	},
}

const python = `
import multiprocessing, os, sqlite3, ssl, subprocess, sys, tempfile
def square(n): return n * n
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, range(4)))
db = sqlite3.connect(os.path.expanduser('~/db.sqlite'))
db.execute('create table t (n, s)'); db.execute("insert into t values (1, 'one')"); db.commit()
print(db.execute('select * from t').fetchall()); db.close(); os.unlink(os.path.expanduser('~/db.sqlite'))
print(subprocess.run([sys.executable, '-c', 'print("child")'], capture_output=True, text=True).stdout.strip())
with tempfile.NamedTemporaryFile('w+') as f: f.write('kept'); f.seek(0); print(f.read())
ssl.create_default_context(); print(len(os.urandom(8)))
`

const javascript = `
const { Worker, isMainThread, parentPort } = require('worker_threads'), fs = require('fs'), { execFileSync } = require('child_process');
if (!isMainThread) { parentPort.postMessage('from a worker'); return; }
new Worker(__filename).on('message', m => {
	console.log(m);
	console.log(execFileSync(process.execPath, ['-p', '"from a child"']).toString().trim());
	const watch = fs.watch('.', (_, name) => { if (name === 'work.txt') { console.log('seen', name); watch.close(); last(); } });
	fs.writeFileSync('work.txt', 'abc');
});
let done = false;
function last() { if (done) return; done = true; console.log(fs.readFileSync('work.txt', 'utf8')); fs.unlinkSync('work.txt'); }
`

// A way is how a container's program is run. Each of the four differs from each
// other in two things at least, and every pair of them occurs.
type way struct {
	user               bool // uid 1000 without capabilities; else root with Docker's
	tty, readOnly, run bool // run: as the container's own program; else by exec
}

var ways = []way{
	{user: false, tty: false, readOnly: false, run: true},
	{user: false, tty: true, readOnly: true, run: false},
	{user: true, tty: true, readOnly: false, run: true},
	{user: true, tty: false, readOnly: true, run: false},
}

func (w way) String() string {
	word := func(yes bool, is, isNot string) string {
		if yes {
			return is
		}
		return isNot
	}
	return word(w.user, "user", "root") + word(w.tty, " at a terminal", "") + word(w.readOnly, " read-only", "") + word(w.run, "", " by exec")
}

// Any image works unchanged under the default policy: real programs do real
// work, whoever runs them and however.
func TestImages(t *testing.T) {
	goCache = t.TempDir()
	if err := os.Chmod(goCache, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		t.Run(i.name, func(t *testing.T) {
			for _, w := range ways {
				t.Run(w.String(), func(t *testing.T) { i.work(t, w) })
			}
		})
	}
}

func (i *image) work(t *testing.T, w way) {
	b := newBox(t)
	b.patience = 3 * time.Minute // compilers, on a busy machine
	i.lay(b)
	if w.user {
		b.asUser()
	}
	if w.readOnly { // as with docker run --read-only --tmpfs /tmp
		b.spec.Root.Readonly = true
		b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/tmp", Options: []string{"nosuid", "nodev", "mode=1777"}})
	}
	b.spec.Process.Env = []string{"PATH=" + i.path, "TERM=xterm"}
	if !w.run {
		b.spec.Process.Args = i.idle
		defer b.up().end()
	}
	for _, e := range i.errands {
		var cmd *exec.Cmd
		switch {
		case w.run:
			b.spec.Process.Args, b.spec.Process.Terminal = e.args, w.tty
			b.saveSpec()
			cmd = b.command("run", "--bundle", b.path("bundle"), b.id)
		case w.tty:
			cmd = b.command(append([]string{"exec", "--tty", b.id}, e.args...)...)
		default:
			cmd = b.command(append([]string{"exec", b.id}, e.args...)...)
		}
		got := result{}
		if w.tty {
			got = b.atTerminal(cmd)
		} else {
			got = b.finish(cmd)
		}
		if got.code != 0 || got.stdout != e.says {
			t.Errorf("%s: %s\nwant: %q", e.name, got, e.says)
		}
	}
}

// atTerminal runs cmd with a terminal of its own to its end and returns what
// was shown there, with line ends as in files.
func (b *box) atTerminal(cmd *exec.Cmd) result {
	b.t.Helper()
	terminal, name, err := console.NewPty()
	b.must(err)
	defer terminal.Close()
	line, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	b.must(err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = line, line, line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	b.must(cmd.Start())
	line.Close()
	alarm := time.AfterFunc(max(b.patience, patience), func() { cmd.Process.Kill() })
	defer alarm.Stop()
	shown, _ := io.ReadAll(terminal) // EIO once nobody has the other end
	_ = cmd.Wait()                   // its exit code tells
	return result{stdout: strings.ReplaceAll(string(shown), "\r", ""), code: cmd.ProcessState.ExitCode()}
}

// A terminal's size is the program's from the start, and its changes reach the
// program: run, and exec.
func TestTerminalIsResized(t *testing.T) {
	b := newBox(t)
	b.must(os.Symlink("busybox", filepath.Join(b.rootfs(), "bin/stty")))
	watch := []string{"/bin/sh", "-c", `trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.01; done`}
	resized := func(cmd *exec.Cmd) {
		t.Helper()
		terminal, name, err := console.NewPty()
		b.must(err)
		defer terminal.Close()
		b.must(terminal.Resize(console.WinSize{Height: 30, Width: 100}))
		line, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
		b.must(err)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = line, line, line
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		b.must(cmd.Start())
		line.Close()
		alarm := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer alarm.Stop()
		shown := bufio.NewReader(terminal)
		for _, want := range []string{"30 100", "40 120"} {
			if got, err := shown.ReadString('\n'); strings.TrimSpace(got) != want {
				t.Errorf("%s: the size is %q (%v), want %s", cmd.Args, got, err, want)
			}
			b.must(terminal.Resize(console.WinSize{Height: 40, Width: 120}))
		}
		_, _ = io.Copy(io.Discard, shown)
		_ = cmd.Wait()
	}
	b.spec.Process.Terminal, b.spec.Process.Args = true, watch
	b.saveSpec()
	resized(b.command("run", "--bundle", b.path("bundle"), b.id))
	b.spec.Process.Terminal, b.spec.Process.Args = false, []string{"/bin/sleep", "1000"}
	defer b.up().end()
	resized(b.command(append([]string{"exec", "--tty", b.id}, watch...)...))
}

// Standard streams that are closed are the program's as runc leaves them.
func TestClosedStreamsAreAsUnderRunc(t *testing.T) {
	for _, closed := range []string{"<&-", "2>&-", "<&- 2>&-"} {
		theirs, ours := underBoth(t, func(b *box) result {
			b.spec.Process.Args = []string{"/bin/sh", "-c", `cat; echo $?; echo complained >&2; echo $?; ls /proc/self/fd | grep -c .`}
			b.must(os.Symlink("busybox", filepath.Join(b.rootfs(), "bin/grep")))
			b.saveSpec()
			inner := b.command("run", "--bundle", b.path("bundle"), b.id)
			cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$@" ` + closed, "sh", inner.Path}, inner.Args[1:]...)...)
			cmd.Env = inner.Env
			return b.finish(cmd)
		})
		if theirs.code != 0 || theirs.stdout != ours.stdout || theirs.code != ours.code {
			t.Errorf("%s: nemoclaw: %s\nrunc: %s", closed, ours, theirs)
		}
	}
}

// emptied takes away what the box's image holds.
func (b *box) emptied() {
	b.t.Helper()
	b.must(os.RemoveAll(b.rootfs()))
	b.must(os.MkdirAll(b.rootfs(), 0o755))
}

// lay writes files into the box's image; scripts, and what lies below a directory
// bin, may be executed.
func (b *box) lay(files map[string]string) {
	b.t.Helper()
	for name, text := range files {
		file, mode := filepath.Join(b.rootfs(), name), os.FileMode(0o644)
		if strings.Contains(name, "bin/") || name == "probe" || strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		b.must(os.MkdirAll(filepath.Dir(file), 0o755))
		b.must(os.WriteFile(file, []byte(text), mode))
	}
}

// scratch is an image with one static program and a file that it may read.
func (b *box) scratch() {
	b.t.Helper()
	probe, err := os.ReadFile(filepath.Join(b.rootfs(), "bin/probe"))
	b.must(err)
	marker, err := os.Readlink(filepath.Join(b.rootfs(), ".nemoclaw-test-root"))
	b.must(err)
	b.emptied()
	b.lay(map[string]string{"probe": string(probe), "etc/motd": "hello\n"})
	b.must(os.Symlink(marker, filepath.Join(b.rootfs(), ".nemoclaw-test-root")))
}

// busybox is an image as the one of that name: a program with many names.
func (b *box) busybox() {
	b.t.Helper()
	path, err := exec.LookPath("busybox")
	b.must(err)
	program, err := os.ReadFile(path)
	b.must(err)
	b.emptied()
	b.lay(map[string]string{"bin/busybox": string(program), "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n"})
	for _, dir := range []string{"home", "root", "tmp", "dev", "proc", "sys", "usr/bin", "var"} {
		b.must(os.MkdirAll(filepath.Join(b.rootfs(), dir), 0o755))
	}
	b.must(os.Chmod(filepath.Join(b.rootfs(), "tmp"), 0o777|os.ModeSticky))
	names, err := exec.Command(path, "--list").Output()
	b.must(err)
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			b.must(os.Symlink("busybox", filepath.Join(b.rootfs(), "bin", name)))
		}
	}
}

// agent is busybox with programs that their makers installed in homes, and
// secrets beside them.
func (b *box) agent() {
	b.t.Helper()
	b.busybox()
	b.lay(map[string]string{
		"root/.local/bin/agent": "#!/bin/sh\necho \"$1, $(cat /root/.local/bin/data)\"\n", "root/.local/bin/data": "its data\n", "root/.netrc": "a secret\n",
		"home/node/.npm-global/bin/start": "#!/bin/sh\necho started\n", "home/node/.netrc": "a secret\n", "entrypoint.sh": "#!/bin/sh\nexec \"$@\"\n",
	})
}

// alpine is busybox and musl in the places that Alpine has for them, and a
// program that is linked with musl.
func (b *box) alpine() {
	b.t.Helper()
	if muslGreet == nil {
		b.t.Run("compiles", func(t *testing.T) { muslGreet, muslLibc = linkWithMusl(t) })
	}
	b.busybox()
	b.lay(map[string]string{
		"usr/bin/greet": string(muslGreet), "etc/alpine-release": "3.99.0\n", "lib/apk/db/installed": "P:musl\n", "etc/hosts": "127.0.0.1 localhost\n",
		"etc/profile": "for script in /etc/profile.d/*.sh; do . $script; done\n", "etc/profile.d/set.sh": "SET='by the profile'\n",
	})
	loader := filepath.Join(b.rootfs(), "lib/ld-musl-"+goArch[goruntime.GOARCH]+".so.1")
	b.must(os.WriteFile(loader, muslLibc, 0o755))
	for _, dir := range []string{"media", "mnt", "opt", "srv", "run", "sbin", "usr/sbin", "usr/lib"} {
		b.must(os.MkdirAll(filepath.Join(b.rootfs(), dir), 0o755))
	}
}

// muslGreet and muslLibc are what linkWithMusl made.
var muslGreet, muslLibc []byte

// linkWithMusl compiles muslProgram, in a sandbox that has the compiler.
func linkWithMusl(t *testing.T) (program, libc []byte) {
	b := newBox(t)
	b.debian()
	got := b.run("/bin/sh", "-ec", "cat >/tmp/greet.c <<'end'\n"+muslProgram+"\nend\nmusl-gcc -o /sandbox/greet /tmp/greet.c")
	if got.code != 0 {
		t.Fatalf("cannot compile with musl: %s", got)
	}
	program, err := os.ReadFile(filepath.Join(b.rootfs(), "sandbox/greet"))
	b.must(err)
	libc, err = os.ReadFile(filepath.Join(b.rootfs(), "usr/lib", goArch[goruntime.GOARCH]+"-linux-musl/libc.so"))
	b.must(err)
	return program, libc
}

// goArch is what others call Go's architectures.
var goArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

const muslProgram = `#include <stdio.h>
#include <stdlib.h>
#include <netdb.h>
#include <arpa/inet.h>
#include <pthread.h>
static int n;
static void *add(void *a) { __sync_fetch_and_add(&n, 1); return a; }
int main(void) {
	pthread_t t[4];
	for (int i = 0; i < 4; i++) pthread_create(t + i, 0, add, 0);
	for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
	printf("threads %d\n", n); fflush(stdout);
	if (system("echo from a shell")) return 1;
	struct addrinfo *a, hint = {.ai_family = AF_INET};
	if (getaddrinfo("localhost", 0, &hint, &a)) return 1;
	puts(inet_ntoa(((struct sockaddr_in *)a->ai_addr)->sin_addr));
}`

// debian makes the box's image Debian, with parcels to install; what is written
// there ends with the box.
func (b *box) debian() {
	b.t.Helper()
	lower, err := debianRoot()
	if err != nil {
		lacking(b.t, "%v", err)
	}
	b.mkdir("upper", "scratch")
	b.mounted("overlay", "", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, b.path("upper"), b.path("scratch")))
	b.lay(map[string]string{"opt/input/greet-1.0-py3-none-any.whl": wheel(b.t), "opt/input/greet-1.0.0.tgz": parcel(b.t)})
	repo := filepath.Join(b.rootfs(), "opt/input/repo")
	for _, args := range [][]string{{"init", "-q", repo}, {"-C", repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "in the image"}} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			lacking(b.t, "cannot make a repository: %v: %s", err, out)
		}
	}
}

// golang is Debian with this machine's Go, as its images have it.
func (b *box) golang() {
	b.t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	b.must(err)
	b.debian()
	b.mounted(strings.TrimSpace(string(out)), "usr/local/go", "", unix.MS_BIND, "")
	// What was compiled is kept in a volume, or each way would take half a minute.
	b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Type: "bind", Source: goCache, Destination: "/cache", Options: []string{"rbind", "rw"}})
}

// goCache is a directory that anybody may write, as long as TestImages runs.
var goCache string

// mounted lays a file system over a directory of the box's image, which stays
// until the container is gone.
func (b *box) mounted(source, at, kind string, flags uintptr, options string) {
	b.t.Helper()
	point := filepath.Join(b.rootfs(), at)
	b.must(os.MkdirAll(point, 0o755))
	if err := unix.Mount(source, point, kind, flags, options); err != nil {
		b.t.Fatalf("cannot mount %s on %s: %v", source, point, err)
	}
	b.t.Cleanup(func() {
		b.nemoclaw(nil, "delete", "--force", b.id)
		if err := unix.Unmount(point, 0); err != nil {
			b.t.Errorf("cannot unmount %s: %v", point, err)
		}
	})
}

// wheel is a Python package, as pip installs it.
func wheel(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range [][2]string{
		{"greet.py", "def main(): print('hello from a wheel')\n"},
		{"greet-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n"},
		{"greet-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"greet-1.0.dist-info/entry_points.txt", "[console_scripts]\ngreet = greet:main\n"},
		{"greet-1.0.dist-info/RECORD", "greet.py,,\ngreet-1.0.dist-info/METADATA,,\ngreet-1.0.dist-info/WHEEL,,\ngreet-1.0.dist-info/entry_points.txt,,\ngreet-1.0.dist-info/RECORD,,\n"},
	} {
		file, err := w.Create(f[0])
		if err == nil {
			_, err = io.WriteString(file, f[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// parcel is a Node package, as npm installs it.
func parcel(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, f := range [][2]string{
		{"package/package.json", `{"name": "greet", "version": "1.0.0", "main": "index.js", "bin": {"greet": "greet.js"}}`},
		{"package/index.js", "exports.words = 'hello';\n"},
		{"package/greet.js", "#!/usr/bin/env node\nconsole.log(require('./index.js').words, 'from a package');\n"},
	} {
		err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o755, Size: int64(len(f[1])), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.WriteString(w, f[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
