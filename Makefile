# Everything that a person or CI does here is a target. `make` lists them.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Static, so that a binary runs from scratch images and on any distribution; the
# version comes from git through VERSION, not from the stamp of the go command,
# which fails in a clone that belongs to somebody else.
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10s
TESTFLAGS ?=
IMAGE   ?= fsbackup:latest
COMMANDS := $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))
# The C library is no command: it needs cgo and its own flags.
COMMANDS := $(filter-out libfsbackup,$(COMMANDS))

# Tools are built here at these versions, from the module proxy, by their own
# go.mod: none of their dependencies enters ours.
TOOLS := $(CURDIR)/bin/tools
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)

COMPOSE ?= $(shell if command -v docker-compose >/dev/null 2>&1; then echo docker-compose; else echo docker compose; fi)

.DEFAULT_GOAL := help
.PHONY: help build test race long lint fuzz-short corpora seeds chaos chaos-mutants verify-large bench generate generate-check clean lib install image compose compose-up compose-down

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the commands into bin/
	@mkdir -p bin
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

test: ## run all tests under the race detector; needs neither Docker nor network
	$(GO) test -race -timeout 25m $(TESTFLAGS) ./...

race: ## run all tests three times under the race detector, in random order
	$(GO) test -race -timeout 45m -count 3 -shuffle on $(TESTFLAGS) ./...

long: ## run tests in their full form: every system call killed and failed, 10,000 rounds of swaps, 5 million files deleted, one tree cut in 18 ways
	FSBACKUP_LONG=1 $(GO) test -race -timeout 4h -count 1 -v $(TESTFLAGS) ./internal/engine/...
	FSBACKUP_LONG=1 $(GO) test -race -timeout 1h -count 1 -v -run TestOneTreeHoweverItIsCut $(TESTFLAGS) ./internal/clustertest

lint: $(GOLANGCI) ## check format, go vet and the linters of .golangci.yml
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null)); \
	 if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GOLANGCI) run ./...

$(GOLANGCI):
	@mkdir -p $(TOOLS)
	@echo "build golangci-lint $(GOLANGCI_VERSION): once, about two minutes"
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv $(TOOLS)/golangci-lint $@

fuzz-short: ## run every fuzz target for FUZZTIME (10s)
	@GO="$(GO)" FUZZTIME="$(FUZZTIME)" bash .ci/fuzz-short

corpora: ## keep what fuzzing has found so far on this machine in testdata/fuzz, as seeds of every test run
	@from=$$($(GO) env GOCACHE)/fuzz/$$($(GO) list -m); \
	 for dir in $$(git ls-files '*_test.go' | xargs grep -l '^func Fuzz' | xargs -n1 dirname | sort -u); do \
		[ ! -d $$from/$$dir ] || { mkdir -p $$dir/testdata/fuzz && cp -r $$from/$$dir/. $$dir/testdata/fuzz/; }; \
	 done; \
	 git ls-files -co '*/testdata/fuzz/*' | wc -l

seeds: ## run the random end-to-end tests of incremental backups with SEEDS (50) seeds
	FSBACKUP_SEEDS=$(or $(SEEDS),50) $(GO) test -timeout 120m -v -run 'TestSecondRunDoesExactlyWhatChanged|TestKilledRunsAreMadeGoodByTheNext' ./cmd/fsbackup

# Of more than 50 seeds a quarter, and no less than 50, are processes; the rest run
# within the test process.
chaos: ## run jobs on clusters that are killed, frozen and cut off, with SEEDS (3) seeds from FIRST (0) on, PARALLEL (2) at once
	@n=$(or $(SEEDS),3); real=$$n; if [ $$n -gt 50 ]; then real=$$((n / 4)); [ $$real -ge 50 ] || real=50; fi; set -ex; \
	FSBACKUP_CHAOS_SEEDS=$$real FSBACKUP_CHAOS_FIRST=$(or $(FIRST),0) $(GO) test -timeout 10h -parallel $(or $(PARALLEL),2) -count 1 -v ./internal/chaos; \
	if [ $$n -gt $$real ]; then FSBACKUP_CLUSTER_SEEDS=$$((n - real)) FSBACKUP_CLUSTER_FIRST=$(or $(FIRST),0) $(GO) test -timeout 10h -parallel $(or $(PARALLEL),2) -count 1 -v -run TestEveryEntryOfEveryControlFile ./internal/clustertest; fi

chaos-mutants: ## run the chaos tests on builds that each lack one defence; fails if SEEDS (5) seeds do not notice
	@GO="$(GO)" SEEDS=$(or $(SEEDS),5) FIRST=$(or $(FIRST),0) PARALLEL=$(or $(PARALLEL),2) bash .ci/chaos-mutants

verify-large: ## find a flipped byte, a wrong mode and attribute, a missing and an extra file in ENTRIES (100000) entries
	FSBACKUP_VERIFY_ENTRIES=$(or $(ENTRIES),100000) $(GO) test -timeout 60m -count 1 -v -run TestVerifyFindsExactlyWhatDiffers ./cmd/fsbackup

bench: ## run the benchmarks of all packages once
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m $(TESTFLAGS) ./...

generate: $(TOOLS)/protoc-gen-go ## generate Go code from internal/protocol/*.proto; needs protoc
	@command -v protoc >/dev/null || { echo "generate: protoc is not installed: apt-get install protobuf-compiler"; exit 1; }
	cd internal/protocol && protoc --plugin=protoc-gen-go=$(TOOLS)/protoc-gen-go \
		--go_out=. --go_opt=paths=source_relative *.proto

# The plug-in's version is that of the protobuf module in go.mod.
$(TOOLS)/protoc-gen-go: go.mod
	$(GO) build -o $@ google.golang.org/protobuf/cmd/protoc-gen-go

generate-check: generate ## fail if generated code is not what its sources give
	git diff --exit-code -- 'internal/protocol/*.pb.go'

clean: ## remove what the other targets built
	rm -rf bin dist coverage

# The C library. Its interface is LIBMAJOR; what is added to it counts LIBMINOR up, and
# gets a node of that version in the map.
LIBMAJOR := 1
LIBMINOR := 1.0
LIBVERSION := $(LIBMAJOR).$(LIBMINOR)
DIST    ?= dist
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
LIBSRC := cmd/libfsbackup
LIBLDFLAGS := $(LDFLAGS) -X main.libVersion=$(LIBVERSION)
# The tag has the library look after its host's signals and limits as it is loaded.
GOLIB := CGO_ENABLED=1 $(GO) build -tags libfsbackup -trimpath -buildvcs=false $(LIBFLAGS)

lib: ## build the C library, shared and static, into DIST (dist/); needs gcc
	@mkdir -p $(DIST)
	$(GOLIB) -buildmode=c-shared -ldflags '$(LIBLDFLAGS) -extldflags "-Wl,-soname,libfsbackup.so.$(LIBMAJOR) -Wl,--version-script=$(CURDIR)/$(LIBSRC)/fsbackup.map"' \
		-o $(DIST)/libfsbackup.so.$(LIBVERSION) ./$(LIBSRC)
	ln -sf libfsbackup.so.$(LIBVERSION) $(DIST)/libfsbackup.so.$(LIBMAJOR)
	ln -sf libfsbackup.so.$(LIBMAJOR) $(DIST)/libfsbackup.so
	$(GOLIB) -buildmode=c-archive -ldflags '$(LIBLDFLAGS)' -o $(DIST)/all.a ./$(LIBSRC)
	sed -n 's/^ *\([A-Z][A-Za-z]*\|fsbackup_[a-z_]*\);$$/\1/p' $(LIBSRC)/fsbackup.map > $(DIST)/exports
	$(LD) -r -d -o $(DIST)/fsbackup.o --whole-archive $(DIST)/all.a
	objcopy --wildcard --keep-global-symbols=$(DIST)/exports $(DIST)/fsbackup.o
	rm -f $(DIST)/libfsbackup.a
	$(AR) rcs $(DIST)/libfsbackup.a $(DIST)/fsbackup.o
	@rm -f $(DIST)/all.a $(DIST)/all.h $(DIST)/exports $(DIST)/fsbackup.o $(DIST)/libfsbackup.so.$(basename $(LIBVERSION)).h
	cp include/fsbackup.h include/fsbackup.hpp $(DIST)/
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|; s|@VERSION@|$(LIBVERSION)|; s|@COMMIT@|$(VERSION)|' $(LIBSRC)/fsbackup.pc.in > $(DIST)/fsbackup.pc

# Builds nothing: what was built as a user is installed as root.
install: ## install what `make build lib` built below DESTDIR and PREFIX (/usr/local); COMPAT=1 adds libBackup.so
	@test -e $(DIST)/libfsbackup.a || { echo "install: nothing is built: run make build lib"; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	for c in $(COMMANDS); do if [ -e bin/$$c ]; then install -m 755 bin/$$c $(DESTDIR)$(PREFIX)/bin/; fi; done
	install -m 755 $(DIST)/libfsbackup.so.$(LIBVERSION) $(DESTDIR)$(LIBDIR)/
	cp -P $(DIST)/libfsbackup.so.$(LIBMAJOR) $(DIST)/libfsbackup.so $(DESTDIR)$(LIBDIR)/
	$(if $(filter 1 yes,$(COMPAT)),ln -sf libfsbackup.so.$(LIBMAJOR) $(DESTDIR)$(LIBDIR)/libBackup.so)
	install -m 644 $(DIST)/libfsbackup.a $(DESTDIR)$(LIBDIR)/
	install -m 644 $(DIST)/fsbackup.pc $(DESTDIR)$(LIBDIR)/pkgconfig/
	install -m 644 $(DIST)/fsbackup.h $(DIST)/fsbackup.hpp $(DESTDIR)$(INCLUDEDIR)/

image: ## build the container image IMAGE (fsbackup:latest) from static binaries
	@rm -rf dist/image && mkdir -p dist/image
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o dist/image/ $(addprefix ./cmd/,$(COMMANDS))
	$(GOBUILD) -ldflags '-s -w' -o dist/image/ github.com/nats-io/nats-server/v2
	cp deploy/nats.conf LICENSE dist/image/
	dist/image/nats-server --config deploy/nats.conf -t
	docker build -q -t $(IMAGE) -f deploy/Dockerfile dist/image

compose: ## run a job on the cluster of deploy/compose.yaml and take it down; needs Docker
	deploy/demo.sh

compose-up: image ## start the cluster of deploy/compose.yaml
	FSBACKUP_IMAGE=$(IMAGE) $(COMPOSE) -f deploy/compose.yaml -p fsbackup up -d

compose-down: ## stop the cluster of deploy/compose.yaml and remove its volumes
	FSBACKUP_IMAGE=$(IMAGE) $(COMPOSE) -f deploy/compose.yaml -p fsbackup down -v
