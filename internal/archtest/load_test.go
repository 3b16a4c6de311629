package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// pkg is one package of the module, as much of it as the rules look at.
type pkg struct {
	path                 string // below the module, "" for its root
	imports, testImports []dep
	files                []file
	testOnly             bool
}

// dep is an import: path is below the module if module is set, else as written.
type dep struct {
	path   string
	module bool
}

type file struct {
	name                        string
	test, generated, packageDoc bool
	lines                       int
	inits                       []token.Position
	selectors                   []selector
}

// selector is a use of a name of an imported package.
type selector struct {
	pkg, name string
	pos       token.Position
}

var load = sync.OnceValues(func() ([]pkg, error) {
	root, err := goTool(".", "list", "-m", "-f", "{{.Dir}}\t{{.Path}}")
	if err != nil {
		return nil, err
	}
	dir, module, _ := strings.Cut(strings.TrimSpace(root), "\t")
	list, err := goTool(dir, "list", "-e",
		"-json=ImportPath,Dir,Imports,TestImports,XTestImports,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	if err != nil {
		return nil, err
	}
	var out []pkg
	for d := json.NewDecoder(strings.NewReader(list)); ; {
		var l struct {
			ImportPath, Dir                                              string
			Imports, TestImports, XTestImports                           []string
			GoFiles, CgoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
		}
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the list of packages: %w", err)
		}
		p := pkg{
			path:     below(l.ImportPath, module).path,
			testOnly: len(l.GoFiles)+len(l.CgoFiles) == 0,
		}
		for _, i := range l.Imports {
			p.imports = append(p.imports, below(i, module))
		}
		for _, i := range append(l.TestImports, l.XTestImports...) {
			p.testImports = append(p.testImports, below(i, module))
		}
		for _, names := range [][]string{l.GoFiles, l.CgoFiles, l.IgnoredGoFiles, l.TestGoFiles, l.XTestGoFiles} {
			for _, name := range names {
				f, err := parse(filepath.Join(l.Dir, name), filepath.Join(p.path, name))
				if err != nil {
					return nil, err
				}
				p.files = append(p.files, f)
			}
		}
		out = append(out, p)
	}
})

// packages returns every package of the module for the platform of the test.
func packages(t *testing.T) []pkg {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("the module has no packages: the rules would pass on anything")
	}
	return all
}

func below(path, module string) dep {
	if !within(path, module) {
		return dep{path: path}
	}
	return dep{path: strings.TrimPrefix(strings.TrimPrefix(path, module), "/"), module: true}
}

func parse(path, shown string) (file, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return file{}, fmt.Errorf("read a source file: %w", err)
	}
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, shown, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return file{}, fmt.Errorf("parse a source file: %w", err)
	}
	f := file{
		name:       shown,
		test:       strings.HasSuffix(path, "_test.go"),
		generated:  ast.IsGenerated(tree),
		packageDoc: tree.Doc != nil,
		lines:      bytes.Count(src, []byte("\n")),
	}
	names := map[string]string{} // local name -> import path
	for _, spec := range tree.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, fmt.Errorf("%s: import %s: %w", shown, spec.Path.Value, err)
		}
		name := filepath.Base(path)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = path
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				f.inits = append(f.inits, fset.Position(n.Pos()))
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				if path, ok := names[x.Name]; ok {
					f.selectors = append(f.selectors, selector{path, n.Sel.Name, fset.Position(n.Pos())})
				}
			}
		}
		return true
	})
	return f, nil
}

func goTool(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	// The module as it is: no download, no change of go.mod, no workspace.
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOPROXY=off", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
