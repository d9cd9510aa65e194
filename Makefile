# nemoclaw: containers as sandboxes for AI agents. "make help" lists the targets.

VERSION ?= 0.1.0
COMMIT  ?= $(shell git describe --always --dirty --abbrev=12 2>/dev/null)
PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go
CC      ?= cc
ARCH    := $(shell $(GO) env GOARCH)

export GOFLAGS := -buildvcs=false

# seccomp: libcontainer's filters. urfave_cli_no_docs, runc_nocriu: 1 ms less of
# start-up, for what is not offered.
TAGS    := seccomp,urfave_cli_no_docs,runc_nocriu,netgo,osusergo
STAMP   := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
LDFLAGS := -s -w $(STAMP)

PROGRAMS := bin/nemoclaw bin/nemoclaw-gateway bin/nemoclawctl bin/containerd-shim-nemoclaw-v1
SOURCES  := $(shell find . -name '*.go' -not -path './.cache/*') go.mod go.sum Makefile

# The launcher: no libc, no start files, one page of code.
LAUNCH_FLAGS := -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie -fno-asynchronous-unwind-tables \
	-Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code -s
ARM64 := .cache/arm64

.PHONY: help build install demo test test-engines test-arm64 test-vm golden fuzz mutate soak bench lint check deps clean launch-arm64

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(PROGRAMS) ## build everything into bin/

runtime/launch_$(ARCH).bin: cmd/nemoclaw-launch/launch.c
	$(CC) $(LAUNCH_FLAGS) -o $@ $<

launch-arm64: ## cross-compile the launcher for arm64, with a compiler unpacked into .cache
	@sh integration/arm64/fetch.sh $(ARM64)
	$(ARM64)/cc $(LAUNCH_FLAGS) -o runtime/launch_arm64.bin cmd/nemoclaw-launch/launch.c

# Go that needs no C; the rest needs libseccomp for arm64.
GO_ARM64 := ./specs/... ./egress/... ./hooks/... ./cmd/nemoclaw-gateway ./cmd/nemoclawctl ./cmd/containerd-shim-nemoclaw-v1
test-arm64: launch-arm64 ## run the launcher for arm64 in an emulator, and vet what else is built for it
	NEMOCLAW_LAUNCH_ARM64=$(CURDIR)/runtime/launch_arm64.bin NEMOCLAW_QEMU_ARM64=$(CURDIR)/$(ARM64)/qemu $(GO) test -count=1 ./integration/arm64
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet -tags urfave_cli_no_docs $(GO_ARM64)

# cgo: libcontainer joins namespaces before Go starts, and libseccomp.
bin/nemoclaw: $(SOURCES) runtime/launch_$(ARCH).bin
	CGO_ENABLED=1 $(GO) build -trimpath -tags $(TAGS),landlocktsync -ldflags '$(LDFLAGS) -linkmode external -extldflags "-static"' -o $@ ./cmd/nemoclaw

bin/nemoclaw-gateway bin/nemoclawctl bin/containerd-shim-nemoclaw-v1: bin/%: $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

test-engines: build ## run under a real Docker, unpacked into .cache (root)
	NEMOCLAW_ENGINES=1 $(GO) test -count=1 -v ./integration/engines

test-vm: build ## run on another machine: another kernel, systemd, other engines; VM="-run Engines" (half an hour, root)
	NEMOCLAW_VM=1 $(GO) test -count=1 -timeout 0 -v ./integration/vm $(VM)

install: build ## install below PREFIX (default /usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/nemoclaw/shim
	install -m 0755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	ln -sfn ../../../bin/nemoclaw $(DESTDIR)$(PREFIX)/libexec/nemoclaw/shim/runc

test: deps build ## run every test that needs no engine
	$(GO) test -count=1 -timeout 30m -tags $(TAGS) ./...

golden: build ## rewrite the golden files; read the diff before committing
	@for dir in $$(grep -rl 'flag.Bool("update"' --include='*_test.go' . | xargs -n1 dirname | sort -u); do \
		$(GO) test -tags $(TAGS) $$dir -update || exit 1; done

FUZZTIME ?= 20s
fuzz: ## fuzz every reader of strangers' bytes, FUZZTIME (20s) each
	@$(GO) list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r pkg dir; do \
		for f in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' "$$dir"/*_test.go 2>/dev/null | cut -c6-); do \
			echo "== $$pkg $$f"; \
			$(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "$$pkg" || exit 1; \
		done; \
	done

mutate: ## take every entry of the lists that confine out in turn: a test must notice; MUTATE="-only guard -v"
	@$(GO) run ./integration/mutate $(MUTATE)

SOAK ?= 10m
soak: build ## SOAK (10m) of mixed load, saves and deaths, and larger floods, looking for leaks and lost connections
	NEMOCLAW_SOAK=$(SOAK) $(GO) test -count=1 -tags $(TAGS) -timeout 0 -v -run '^TestSoak$$' ./integration
	NEMOCLAW_KILLS=100 NEMOCLAW_FLOOD=20 $(GO) test -count=1 -tags $(TAGS) -timeout 0 -v -run '^(TestFloods|TestWorkerDiesAgainAndAgain)$$' ./integration

bench: build ## measure beside runc, crun, haproxy, nginx, squid and mitmproxy; BENCH="-only net -rounds 9"
	CGO_ENABLED=0 $(GO) run ./integration/bench $(BENCH)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@latest
lint: runtime/launch_$(ARCH).bin ## gofmt, vet, staticcheck, and govulncheck where its database can be reached
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt: not formatted:"; echo "$$unformatted"; exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) run $(STATICCHECK) -tags $(TAGS) ./...
	@if $(GO) run $(GOVULNCHECK) -tags $(TAGS) ./... >bin/vuln.txt 2>&1; then cat bin/vuln.txt; \
	elif grep -qi 'vulnerability #\|^Vulnerability' bin/vuln.txt; then cat bin/vuln.txt; exit 1; \
	else echo "govulncheck: its database cannot be reached from here; not run"; fi

check: lint test ## what must pass before a commit

deps: ## say what building needs besides Go, and install what is missing
	@GO="$(GO)" CC="$(CC)" sh examples/demo/deps.sh

demo: deps ## show an agent in a sandbox: what it tries, and which layer answers
	@$(MAKE) --no-print-directory build bin/demo bin/demo-agent
	@bin/demo

bin/demo bin/demo-agent: bin/%: $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./examples/$(subst -,/,$*)

clean: ## remove what was built
	rm -rf bin runtime/launch_*.bin
